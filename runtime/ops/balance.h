// Load balancing where the counts are (spec 2.2): the auxiliary loss and its gradient, the selection bias, and the sums
// of a step, so that the host need not read a number before the step is over.
#pragma once

#include "runtime/core/context.h"
#include "runtime/core/tensor.h"

namespace emox::ops {

struct BalanceOptions {
  double weight = 0;       ///< of the loss, shared by the layers
  std::int64_t top_k = 1;  ///< routed picks of a token
  double divisor = 1;      ///< of the loss: tokens of the step, or as the balance scope says (design 4.7)
};
/// LB = weight / L n / k / (tokens divisor) sum over layers and experts of counts p_sum, tokens = counts of the first
/// layer / k (0 when there are none, or nothing to divide by).
/// gradient f32 [L,n]: d LB / d p, the same for every token. loss f64 [1] += LB. counts i64 [L,n], p_sum f64 [L,n]:
/// sums of p over this rank's tokens.
void balance_gradient(Context& ctx, TensorView gradient, TensorView loss, TensorView counts, TensorView p_sum,
                      BalanceOptions options);

/// DeepSeek's rule (balance = bias): an expert that was picked more often than its layer's mean becomes less attractive
/// by `rate`, one that was picked less often more. bias f32 [L,n], counts i64 [L,n].
void move_selection_bias(Context& ctx, TensorView bias, TensorView counts, double rate);

/// total i64 [n] += x i64 [n]
void add_counts(Context& ctx, TensorView total, TensorView x);
/// total f64 [1] += x f64 [n], one after another
void add_sum(Context& ctx, TensorView total, TensorView x);

}  // namespace emox::ops
