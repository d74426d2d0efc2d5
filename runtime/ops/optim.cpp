#include "runtime/ops/optim.h"

#include "runtime/cpu/kernels.h"
#include "runtime/ops/check.h"
#include "runtime/telemetry/spans.h"

namespace emox::ops {

void sum_of_squares(Context& ctx, TensorView out, TensorView x) {
  expect("sum_of_squares", "out", out, DType::F64, {1});
  expect("sum_of_squares", "x", x, DType::F32, x.shape());
  expect_cpu("sum_of_squares", ctx);
  const Span span(ctx, "sum_of_squares", 0, static_cast<double>(x.bytes()));
  cpu::sum_of_squares(ctx, out, x);
}

void adamw(Context& ctx, TensorView param, TensorView grad, TensorView m, TensorView v, const AdamW& options) {
  expect("adamw", "param", param, DType::F32, param.shape());
  expect("adamw", "grad", grad, DType::F32, param.shape());
  expect("adamw", "m", m, DType::F32, param.shape());
  expect("adamw", "v", v, DType::F32, param.shape());
  require<ShapeError>(options.step >= 1, "[adamw] the step counts from 1, got {}", options.step);
  expect_cpu("adamw", ctx);
  const Span span(ctx, "adamw", 0, 7.0 * static_cast<double>(param.bytes()));
  cpu::adamw(ctx, param, grad, m, v, options);
}

}  // namespace emox::ops
