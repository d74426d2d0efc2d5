#include "runtime/ops/matmul.h"

#include "runtime/ops/check.h"
#include "runtime/ops/dispatch.h"

namespace emox::ops {
namespace {

// Of products of [m,k] by [k,n] together.
Work product(std::string_view name, std::int64_t m, std::int64_t n, std::int64_t k, double bytes) {
  return {2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k), bytes, name};
}

void check_offsets(std::string_view op, const TensorView& offsets, std::int64_t experts) {
  expect(op, "offsets", offsets, DType::I64, {experts + 1});
}

void check_logits(std::string_view op, std::string_view operand, const TensorView& z, std::int64_t tokens,
                  std::int64_t columns) {
  expect_rank(op, operand, z, DType::F32, 2);
  require<ShapeError>(z.dim(0) == tokens && z.dim(1) >= columns, "[{}] {} is {}, expected {} rows of at least {}", op,
                      operand, z.shape().str(), tokens, columns);
}

}  // namespace

void matmul_nt(Context& ctx, TensorView c, TensorView a, TensorView b, float beta) {
  expect_rank("matmul_nt", "a", a, ctx.activations, 2);
  expect("matmul_nt", "b", b, ctx.activations, {b.dim(0), a.dim(1)});
  expect("matmul_nt", "c", c, ctx.activations, {a.dim(0), b.dim(0)});
  run<Op::matmul_nt>(ctx, product("matmul", a.dim(0), b.dim(0), a.dim(1), bytes_of(a, b, c)), activation(c), a, b,
                     beta);
}

void matmul_nn(Context& ctx, TensorView c, TensorView a, TensorView b, float beta) {
  expect_rank("matmul_nn", "a", a, ctx.activations, 2);
  expect_rank("matmul_nn", "b", b, ctx.activations, 2);
  expect("matmul_nn", "b", b, ctx.activations, {a.dim(1), b.dim(1)});
  expect("matmul_nn", "c", c, ctx.activations, {a.dim(0), b.dim(1)});
  run<Op::matmul_nn>(ctx, product("matmul", a.dim(0), b.dim(1), a.dim(1), bytes_of(a, b, c)), activation(c), a, b,
                     beta);
}

void matmul_tn(Context& ctx, TensorView c, TensorView a, TensorView b, float beta) {
  expect_rank("matmul_tn", "a", a, ctx.activations, 2);
  expect_rank("matmul_tn", "b", b, ctx.activations, 2);
  expect("matmul_tn", "b", b, ctx.activations, {a.dim(0), b.dim(1)});
  expect("matmul_tn", "c", c, DType::F32, {a.dim(1), b.dim(1)});
  run<Op::matmul_tn>(ctx, product("matmul", a.dim(1), b.dim(1), a.dim(0), bytes_of(a, b, c)), c, a, b, beta);
}

void logits(Context& ctx, TensorView logits, TensorView x, TensorView weight) {
  expect_rank("logits", "x", x, ctx.activations, 2);
  expect_rank("logits", "weight", weight, ctx.activations, 2);
  expect("logits", "weight", weight, ctx.activations, {weight.dim(0), x.dim(1)});
  check_logits("logits", "logits", logits, x.dim(0), weight.dim(0));
  run<Op::logits>(ctx, product("matmul", x.dim(0), weight.dim(0), x.dim(1), bytes_of(logits, x, weight)), logits, x,
                  weight);
}

void logits_backward(Context& ctx, TensorView dx, TensorView dweight, TensorView dlogits, TensorView x,
                     TensorView weight) {
  expect_rank("logits_backward", "x", x, ctx.activations, 2);
  expect_rank("logits_backward", "weight", weight, ctx.activations, 2);
  expect("logits_backward", "weight", weight, ctx.activations, {weight.dim(0), x.dim(1)});
  expect("logits_backward", "dx", dx, ctx.activations, x.shape());
  expect("logits_backward", "dweight", dweight, DType::F32, weight.shape());
  check_logits("logits_backward", "dlogits", dlogits, x.dim(0), weight.dim(0));
  run<Op::logits_backward>(
      ctx, product("matmul", x.dim(0), 2 * weight.dim(0), x.dim(1), bytes_of(dx, dweight, dlogits, x, weight)),
      activation(dx), dweight, dlogits, x, weight);
}

void grouped_matmul_nt(Context& ctx, TensorView c, TensorView a, TensorView b, TensorView offsets) {
  expect_rank("grouped_matmul_nt", "a", a, ctx.activations, 2);
  expect_rank("grouped_matmul_nt", "b", b, ctx.activations, 3);
  expect("grouped_matmul_nt", "b", b, ctx.activations, {b.dim(0), b.dim(1), a.dim(1)});
  expect("grouped_matmul_nt", "c", c, ctx.activations, {a.dim(0), b.dim(1)});
  check_offsets("grouped_matmul_nt", offsets, b.dim(0));
  run<Op::grouped_matmul_nt>(ctx, product("grouped_matmul", a.dim(0), b.dim(1), a.dim(1), bytes_of(a, b, c)),
                             activation(c), a, b, offsets);
}

void grouped_matmul_nn(Context& ctx, TensorView c, TensorView a, TensorView b, TensorView offsets) {
  expect_rank("grouped_matmul_nn", "a", a, ctx.activations, 2);
  expect_rank("grouped_matmul_nn", "b", b, ctx.activations, 3);
  expect("grouped_matmul_nn", "b", b, ctx.activations, {b.dim(0), a.dim(1), b.dim(2)});
  expect("grouped_matmul_nn", "c", c, ctx.activations, {a.dim(0), b.dim(2)});
  check_offsets("grouped_matmul_nn", offsets, b.dim(0));
  run<Op::grouped_matmul_nn>(ctx, product("grouped_matmul", a.dim(0), b.dim(2), a.dim(1), bytes_of(a, b, c)),
                             activation(c), a, b, offsets);
}

void grouped_matmul_tn(Context& ctx, TensorView c, TensorView a, TensorView b, TensorView offsets, float beta) {
  expect_rank("grouped_matmul_tn", "a", a, ctx.activations, 2);
  expect_rank("grouped_matmul_tn", "b", b, ctx.activations, 2);
  expect("grouped_matmul_tn", "b", b, ctx.activations, {a.dim(0), b.dim(1)});
  expect_rank("grouped_matmul_tn", "c", c, DType::F32, 3);
  expect("grouped_matmul_tn", "c", c, DType::F32, {c.dim(0), a.dim(1), b.dim(1)});
  check_offsets("grouped_matmul_tn", offsets, c.dim(0));
  run<Op::grouped_matmul_tn>(ctx, product("grouped_matmul", a.dim(1), b.dim(1), a.dim(0), bytes_of(a, b, c)), c, a, b,
                             offsets, beta);
}

}  // namespace emox::ops
