// Language-model head and loss, fused so that logits exist for a block of tokens only.
#pragma once

#include "runtime/core/context.h"
#include "runtime/core/tensor.h"

namespace emox::ops {

struct LmLossOptions {
  double inverse_divisor = 1.0;  ///< 1 / labels that count in the whole step, all ranks (design 4.6)
  double z_weight = 0.0;         ///< of the squared log-sum-exp of the logits (spec 2.4)
};

struct LmHead {
  TensorView x;       ///< [T,D]
  TensorView weight;  ///< [V,D]
  TensorView labels;  ///< i32 [T], -1: not scored
};
/// dx and dweight are wanted together or not at all.
struct LmLossResult {
  TensorView sums;             ///< f64 [2] += {sum of -log softmax(label), sum of lse^2} over scored tokens, unweighted
  TensorView token_loss = {};  ///< [T] = -log softmax(label), 0 where not scored; null: not wanted
  TensorView dx = {};          ///< [T,D] = gradient of inverse_divisor (ce + z_weight z); null: loss only
  TensorView dweight = {};     ///< [V,D] += the same
};
/// For dispatch.h, which looks at every operand, and at those that have the type of Context::activations.
template <typename F>
void for_each_view(const LmHead& h, F&& f) {
  f(h.x), f(h.weight), f(h.labels);
}
template <typename F>
void for_each_view(const LmLossResult& r, F&& f) {
  f(r.sums), f(r.token_loss), f(r.dx), f(r.dweight);
}
template <typename F>
void for_each_activation(const LmLossResult& r, F&& f) {
  f(r.dx);
}

/// Bytes of scratch that lm_head_loss needs on the device for T tokens and V words.
std::size_t lm_head_loss_scratch(Device device, std::int64_t tokens, std::int64_t vocab);

/// Cross entropy and LM z-loss of x . weight^T against the labels; scratch u8 [lm_head_loss_scratch].
void lm_head_loss(Context& ctx, const LmLossResult& out, const LmHead& head, TensorView scratch,
                  const LmLossOptions& options);

}  // namespace emox::ops
