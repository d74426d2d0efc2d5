#include "runtime/ops/matmul.h"

#include "runtime/cpu/kernels.h"
#include "runtime/ops/check.h"
#include "runtime/telemetry/spans.h"

namespace emox::ops {
namespace {

double bytes_of(const TensorView& a, const TensorView& b, const TensorView& c) {
  return static_cast<double>(a.bytes() + b.bytes() + c.bytes());
}

double product_flops(std::int64_t m, std::int64_t n, std::int64_t k) {
  return 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
}

void check_offsets(std::string_view op, const TensorView& offsets, std::int64_t experts) {
  expect(op, "offsets", offsets, DType::I64, {experts + 1});
}

}  // namespace

void matmul_nt(Context& ctx, TensorView c, TensorView a, TensorView b, float beta) {
  expect_rank("matmul_nt", "a", a, DType::F32, 2);
  expect("matmul_nt", "b", b, DType::F32, {b.dim(0), a.dim(1)});
  expect("matmul_nt", "c", c, DType::F32, {a.dim(0), b.dim(0)});
  expect_cpu("matmul_nt", ctx);
  const Span span(ctx, "matmul", product_flops(a.dim(0), b.dim(0), a.dim(1)), bytes_of(a, b, c));
  cpu::matmul_nt(ctx, c, a, b, beta);
}

void matmul_nn(Context& ctx, TensorView c, TensorView a, TensorView b, float beta) {
  expect_rank("matmul_nn", "a", a, DType::F32, 2);
  expect_rank("matmul_nn", "b", b, DType::F32, 2);
  expect("matmul_nn", "b", b, DType::F32, {a.dim(1), b.dim(1)});
  expect("matmul_nn", "c", c, DType::F32, {a.dim(0), b.dim(1)});
  expect_cpu("matmul_nn", ctx);
  const Span span(ctx, "matmul", product_flops(a.dim(0), b.dim(1), a.dim(1)), bytes_of(a, b, c));
  cpu::matmul_nn(ctx, c, a, b, beta);
}

void matmul_tn(Context& ctx, TensorView c, TensorView a, TensorView b, float beta) {
  expect_rank("matmul_tn", "a", a, DType::F32, 2);
  expect_rank("matmul_tn", "b", b, DType::F32, 2);
  expect("matmul_tn", "b", b, DType::F32, {a.dim(0), b.dim(1)});
  expect("matmul_tn", "c", c, DType::F32, {a.dim(1), b.dim(1)});
  expect_cpu("matmul_tn", ctx);
  const Span span(ctx, "matmul", product_flops(a.dim(1), b.dim(1), a.dim(0)), bytes_of(a, b, c));
  cpu::matmul_tn(ctx, c, a, b, beta);
}

void grouped_matmul_nt(Context& ctx, TensorView c, TensorView a, TensorView b, TensorView offsets) {
  expect_rank("grouped_matmul_nt", "a", a, DType::F32, 2);
  expect_rank("grouped_matmul_nt", "b", b, DType::F32, 3);
  expect("grouped_matmul_nt", "b", b, DType::F32, {b.dim(0), b.dim(1), a.dim(1)});
  expect("grouped_matmul_nt", "c", c, DType::F32, {a.dim(0), b.dim(1)});
  check_offsets("grouped_matmul_nt", offsets, b.dim(0));
  expect_cpu("grouped_matmul_nt", ctx);
  const Span span(ctx, "grouped_matmul", product_flops(a.dim(0), b.dim(1), a.dim(1)), bytes_of(a, b, c));
  cpu::grouped_matmul_nt(ctx, c, a, b, offsets);
}

void grouped_matmul_nn(Context& ctx, TensorView c, TensorView a, TensorView b, TensorView offsets) {
  expect_rank("grouped_matmul_nn", "a", a, DType::F32, 2);
  expect_rank("grouped_matmul_nn", "b", b, DType::F32, 3);
  expect("grouped_matmul_nn", "b", b, DType::F32, {b.dim(0), a.dim(1), b.dim(2)});
  expect("grouped_matmul_nn", "c", c, DType::F32, {a.dim(0), b.dim(2)});
  check_offsets("grouped_matmul_nn", offsets, b.dim(0));
  expect_cpu("grouped_matmul_nn", ctx);
  const Span span(ctx, "grouped_matmul", product_flops(a.dim(0), b.dim(2), a.dim(1)), bytes_of(a, b, c));
  cpu::grouped_matmul_nn(ctx, c, a, b, offsets);
}

void grouped_matmul_tn(Context& ctx, TensorView c, TensorView a, TensorView b, TensorView offsets, float beta) {
  expect_rank("grouped_matmul_tn", "a", a, DType::F32, 2);
  expect_rank("grouped_matmul_tn", "b", b, DType::F32, 2);
  expect("grouped_matmul_tn", "b", b, DType::F32, {a.dim(0), b.dim(1)});
  expect_rank("grouped_matmul_tn", "c", c, DType::F32, 3);
  expect("grouped_matmul_tn", "c", c, DType::F32, {c.dim(0), a.dim(1), b.dim(1)});
  check_offsets("grouped_matmul_tn", offsets, c.dim(0));
  expect_cpu("grouped_matmul_tn", ctx);
  const Span span(ctx, "grouped_matmul", product_flops(a.dim(1), b.dim(1), a.dim(0)), bytes_of(a, b, c));
  cpu::grouped_matmul_tn(ctx, c, a, b, offsets, beta);
}

}  // namespace emox::ops
