#include "runtime/ops/optim.h"

#include "runtime/ops/check.h"
#include "runtime/ops/dispatch.h"

namespace emox::ops {

void sum_of_squares(Context& ctx, TensorView out, TensorView x) {
  expect("sum_of_squares", "out", out, DType::F64, {1});
  expect("sum_of_squares", "x", x, DType::F32, x.shape());
  run<Op::sum_of_squares>(ctx, Work{.bytes = bytes_of(x)}, out, x);
}

void adamw(Context& ctx, TensorView param, TensorView copy, TensorView grad, TensorView m, TensorView v,
           const AdamW& options) {
  expect("adamw", "param", param, DType::F32, param.shape());
  expect_optional("adamw", "copy", copy, DType::BF16, param.shape());
  expect("adamw", "grad", grad, DType::F32, param.shape());
  expect("adamw", "m", m, DType::F32, param.shape());
  expect("adamw", "v", v, DType::F32, param.shape());
  require<ShapeError>(options.step >= 1, "[adamw] the step counts from 1, got {}", options.step);
  run<Op::adamw>(ctx, Work{.bytes = 7.0 * bytes_of(param) + bytes_of(copy)}, param, copy, grad, m, v, options);
}

}  // namespace emox::ops
