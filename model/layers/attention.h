// Self-attention block: x + W_o attention(rope(W_qkv norm(x)))     (spec 1.1)
#pragma once

#include "model/transformer/batch.h"
#include "model/transformer/config.h"
#include "model/transformer/parameter_store.h"
#include "runtime/core/arena.h"
#include "runtime/core/context.h"

namespace emox {

class Attention {
 public:
  /// What the backward pass needs, for the largest micro-batch of T tokens.
  struct Saved {
    TensorView normed;  ///< [T,D]
    TensorView rstd;    ///< [T]
    TensorView qkv;     ///< [T,3D], before the rotation
    TensorView mixed;   ///< [T,D] attention output before W_o
    TensorView lse;     ///< [heads * T]
  };
  struct Rope {
    TensorView cos, sin;  ///< [sequence_length, head_dim/2]
  };
  struct Scratch {
    TensorView dnormed;  ///< [T,D]
    TensorView dqkv;     ///< [T,3D]
  };

  /// What both passes read.
  struct Input {
    TensorView x;  ///< [T,D]
    const DeviceBatch& batch;
    const Rope& rope;
  };

  Attention(const ModelConfig& config, std::int64_t layer, ParameterStore& store);
  Saved reserve(Arena& arena, std::int64_t tokens) const;

  /// y[T,D] = x + ...
  void forward(Context& ctx, TensorView y, const Input& in, const Saved& saved, const ParameterStore& store) const;
  /// d[T,D]: gradient of y on entry, of x on return.
  void backward(Context& ctx, TensorView d, const Input& in, const Saved& saved, const Scratch& scratch,
                const ParameterStore& store) const;

 private:
  int heads_;
  std::int64_t width_;
  float eps_;
  ParameterSlot norm_, qkv_, out_;
};

}  // namespace emox
