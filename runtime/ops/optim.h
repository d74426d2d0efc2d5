// Ops of the optimizer.
#pragma once

#include "runtime/core/context.h"
#include "runtime/core/tensor.h"

namespace emox::ops {

/// out f64 [1] += sum of squares of x, accumulated in double.
void sum_of_squares(Context& ctx, TensorView out, TensorView x);

struct AdamW {
  double learning_rate, beta1, beta2, eps, weight_decay;
  double grad_scale;  ///< clipping: every gradient is multiplied by this first
  std::int64_t step;  ///< counts from 1
};
/// One AdamW update in place, and `copy` bf16 (null: none) = the new param, rounded; param, grad, m (exp_avg), v
/// (exp_avg_sq) f32, equal sizes (spec 4): p -= lr wd p;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;  p -= lr
/// (m/(1-b1^t)) / (sqrt(v/(1-b2^t)) + eps)
void adamw(Context& ctx, TensorView param, TensorView copy, TensorView grad, TensorView m, TensorView v,
           const AdamW& options);

}  // namespace emox::ops
