// Language-model head and loss, fused so that logits exist for a block of tokens only.
#pragma once

#include "runtime/core/context.h"
#include "runtime/core/tensor.h"

namespace emox::ops {

struct LmLossOptions {
  double inverse_divisor = 1.0;  ///< 1 / labels that count in the whole step, all ranks (design 4.6)
  double z_weight = 0.0;         ///< of the squared log-sum-exp of the logits (spec 2.4)
};

/// Bytes of scratch that lm_head_loss needs for T tokens, width D and V words on `threads` threads.
std::size_t lm_head_loss_scratch(std::int64_t tokens, std::int64_t width, std::int64_t vocab, int threads);

/// Cross entropy and LM z-loss of x[T,D] . weight[V,D]^T against labels i32 [T] (-1: not scored).
///   sums f64 [2] += {sum of -log softmax(label), sum of lse^2} over scored tokens (undivided, unweighted)
///   token_loss[T] = -log softmax(label), 0 where not scored (null: not wanted)
///   dx[T,D]    =  gradient of inverse_divisor (ce + z_weight z)   (null: loss only)
///   dweight[V,D] += the same                                       (null with dx)
/// scratch u8 [lm_head_loss_scratch].
void lm_head_loss(Context& ctx, TensorView sums, TensorView token_loss, TensorView dx, TensorView dweight, TensorView x,
                  TensorView weight, TensorView labels, TensorView scratch, LmLossOptions options);

}  // namespace emox::ops
