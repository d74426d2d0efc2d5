// Pieces to load that do not lie in host memory, or are kept rounded: they get memory of their own for the load, and
// are brought to their place afterwards.
#pragma once

#include <span>
#include <vector>

#include "parallel/checkpoint/checkpoint.h"
#include "runtime/core/context.h"
#include "runtime/core/tensor.h"

namespace emox {

class HostPieces {
 public:
  /// Pieces in host memory are used as they are; those of bf16 are loaded as f32, which a checkpoint holds.
  explicit HostPieces(std::span<const CheckpointPiece> pieces);

  /// For load_checkpoint; valid while this object lives.
  std::span<const CheckpointPiece> pieces() const { return host_; }
  /// After the load: to the device, and rounded to bf16 where a piece is.
  void deliver(Context& ctx) const;

 private:
  std::vector<CheckpointPiece> host_;
  std::vector<TensorView> places_;  ///< null: is in its place
  std::vector<Tensor> memory_;
};

}  // namespace emox
