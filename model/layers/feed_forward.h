// SwiGLU feed-forward without its norm: y += W2 (silu(W1 x) * W3 x). The dense layer's body, and that of one shared
// expert.
#pragma once

#include <string>

#include "model/transformer/parameter_store.h"
#include "runtime/core/context.h"

namespace emox {

class FeedForward {
 public:
  FeedForward(std::int64_t d_model, std::int64_t d_ff, const std::string& name_prefix, ParameterStore& store);
  std::int64_t width() const { return d_ff_; }

  /// y[T,D] += ..., hidden[T,2F] saved for backward, activation[T,F] scratch.
  void forward_add(Context& ctx, TensorView y, TensorView x, TensorView hidden, TensorView activation,
                   const ParameterStore& store) const;
  /// dx[T,D] = beta dx + ...; hidden is overwritten with its gradient; activation[T,F] scratch.
  void backward(Context& ctx, TensorView dx, TensorView dy, TensorView x, TensorView hidden, TensorView activation,
                float beta, const ParameterStore& store) const;

 private:
  std::int64_t d_ff_;
  ParameterSlot up_;    ///< [2F,D]: gate_proj (W1) above up_proj (W3)
  ParameterSlot down_;  ///< [D,F]
};

}  // namespace emox
