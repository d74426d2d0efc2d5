#include "runtime/ops/experts.h"

#include "runtime/ops/check.h"
#include "runtime/ops/dispatch.h"
#include "runtime/ops/layers.h"
#include "runtime/ops/matmul.h"

namespace emox::ops {
namespace {

void check_experts(std::string_view op, const Context& ctx, const TensorView& out, const ExpertRows& rows,
                   const ExpertMatrices& weights) {
  const DType type = ctx.activations;
  expect_rank(op, "up", weights.up, type, 3);
  expect_rank(op, "down", weights.down, type, 3);
  const std::int64_t experts = weights.down.dim(0), d = weights.down.dim(1), f = weights.down.dim(2);
  expect(op, "up", weights.up, type, {experts, 2 * f, d});
  expect_rank(op, "in", rows.in, type, 2);
  const std::int64_t r = rows.in.dim(0);
  expect(op, "in", rows.in, type, {r, d});
  expect(op, "out", out, type, {r, d});
  expect(op, "gates", rows.gates, DType::F32, {r});
  expect(op, "hidden", rows.hidden, type, {r, 2 * f});
  expect(op, "activation", rows.activation, type, {r, f});
  expect(op, "offsets", rows.offsets, DType::I64, {experts + 1});
}

double product_flops(const ExpertRows& rows, double products) {
  return 2.0 * products * static_cast<double>(rows.in.numel()) * static_cast<double>(rows.activation.dim(1));
}

}  // namespace

void experts(Context& ctx, TensorView out, const ExpertRows& rows, const ExpertMatrices& weights) {
  check_experts("experts", ctx, out, rows, weights);
  if (ctx.round_activations) {  // what lies between the products has the activations' type, too
    grouped_matmul_nt(ctx, rows.hidden, rows.in, weights.up, rows.offsets);
    swiglu(ctx, rows.activation, rows.hidden, rows.gates);
    return grouped_matmul_nt(ctx, out, rows.activation, weights.down, rows.offsets);
  }
  run<Op::experts>(ctx, Work{product_flops(rows, 3), bytes_of(out, rows.in, rows.hidden, weights.up, weights.down)},
                   activation(out), rows, weights);
}

void experts_backward(Context& ctx, TensorView drows, TensorView dgates, const ExpertMatrices& gradients,
                      const ExpertRows& rows, const ExpertMatrices& weights, float beta) {
  check_experts("experts_backward", ctx, drows, rows, weights);
  expect("experts_backward", "dgates", dgates, DType::F32, {drows.dim(0)});
  expect("experts_backward", "gradient of up", gradients.up, DType::F32, weights.up.shape());
  expect("experts_backward", "gradient of down", gradients.down, DType::F32, weights.down.shape());
  if (ctx.round_activations) {
    grouped_matmul_nn(ctx, rows.activation, drows, weights.down, rows.offsets);
    swiglu_backward(ctx, rows.hidden, rows.activation, dgates, rows.activation, rows.hidden, rows.gates);
    grouped_matmul_tn(ctx, gradients.down, drows, rows.activation, rows.offsets, beta);
    grouped_matmul_tn(ctx, gradients.up, rows.hidden, rows.in, rows.offsets, beta);
    return grouped_matmul_nn(ctx, drows, rows.hidden, weights.up, rows.offsets);
  }
  const double bytes = bytes_of(drows, drows, rows.in, rows.hidden, weights.up, weights.down) +
                       bytes_of(gradients.up, gradients.down, gradients.up, gradients.down);
  run<Op::experts_backward>(ctx, Work{product_flops(rows, 6), bytes}, activation(drows), dgates, gradients, rows,
                            weights, beta);
}

}  // namespace emox::ops
