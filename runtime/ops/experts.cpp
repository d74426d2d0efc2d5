#include "runtime/ops/experts.h"

#include "runtime/cpu/kernels.h"
#include "runtime/ops/check.h"
#include "runtime/telemetry/spans.h"

namespace emox::ops {
namespace {

void check_experts(std::string_view op, const TensorView& out, const ExpertRows& rows, const ExpertMatrices& weights) {
  expect_rank(op, "up", weights.up, DType::F32, 3);
  expect_rank(op, "down", weights.down, DType::F32, 3);
  const std::int64_t experts = weights.down.dim(0), d = weights.down.dim(1), f = weights.down.dim(2);
  expect(op, "up", weights.up, DType::F32, {experts, 2 * f, d});
  expect_rank(op, "in", rows.in, DType::F32, 2);
  const std::int64_t r = rows.in.dim(0);
  expect(op, "in", rows.in, DType::F32, {r, d});
  expect(op, "out", out, DType::F32, {r, d});
  expect(op, "gates", rows.gates, DType::F32, {r});
  expect(op, "hidden", rows.hidden, DType::F32, {r, 2 * f});
  expect(op, "activation", rows.activation, DType::F32, {r, f});
  expect(op, "offsets", rows.offsets, DType::I64, {experts + 1});
}

double product_flops(const ExpertRows& rows, double products) {
  return 2.0 * products * static_cast<double>(rows.in.numel()) * static_cast<double>(rows.activation.dim(1));
}

}  // namespace

void experts(Context& ctx, TensorView out, const ExpertRows& rows, const ExpertMatrices& weights) {
  check_experts("experts", out, rows, weights);
  expect_cpu("experts", ctx);
  const Span span(ctx, "experts", product_flops(rows, 3),
                  bytes_of(out, rows.in, rows.hidden, weights.up, weights.down));
  cpu::experts(ctx, out, rows, weights);
}

void experts_backward(Context& ctx, TensorView drows, TensorView dgates, const ExpertMatrices& gradients,
                      const ExpertRows& rows, const ExpertMatrices& weights, float beta) {
  check_experts("experts_backward", drows, rows, weights);
  expect("experts_backward", "dgates", dgates, DType::F32, {drows.dim(0)});
  expect("experts_backward", "gradient of up", gradients.up, DType::F32, weights.up.shape());
  expect("experts_backward", "gradient of down", gradients.down, DType::F32, weights.down.shape());
  expect_cpu("experts_backward", ctx);
  const Span span(ctx, "experts_backward", product_flops(rows, 6),
                  bytes_of(drows, drows, rows.in, rows.hidden, weights.up, weights.down) +
                      bytes_of(gradients.up, gradients.down, gradients.up, gradients.down));
  cpu::experts_backward(ctx, drows, dgates, gradients, rows, weights, beta);
}

}  // namespace emox::ops
