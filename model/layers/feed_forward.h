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

  struct Rows {
    TensorView x;           ///< [T,D]
    TensorView hidden;      ///< [T,2F], made by the forward pass; the backward pass turns it into its gradient
    TensorView activation;  ///< [T,F] scratch
  };
  /// y[T,D] += ...
  void forward_add(Context& ctx, TensorView y, const Rows& rows, const ParameterStore& store) const;
  /// dx[T,D] = beta dx + ...
  void backward(Context& ctx, TensorView dx, float beta, TensorView dy, const Rows& rows,
                const ParameterStore& store) const;

 private:
  std::int64_t d_ff_;
  ParameterSlot up_;    ///< [2F,D]: gate_proj (W1) above up_proj (W3)
  ParameterSlot down_;  ///< [D,F]
};

}  // namespace emox
