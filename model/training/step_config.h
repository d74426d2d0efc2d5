// What a training step needs to know, besides its model.
#pragma once

#include <cstdint>

#include "model/optim/optimizer.h"
#include "model/transformer/config.h"

namespace emox {

enum class MicroBatchMemory : std::uint8_t { Auto, Hold, Recompute };

struct StepConfig {
  ModelConfig model;
  std::int64_t batch_sequences = 1;        ///< of one step, all ranks together
  std::int64_t micro_batch_sequences = 1;  ///< that a rank computes at a time, at most
  MicroBatchMemory micro_batch_memory = MicroBatchMemory::Auto;
  double lm_z_weight = 0;
  AdamWConfig adamw = {};
  std::int32_t eos = 0;                                         ///< the token that ends a document
  ShardedBuffer::Reduce reduce = ShardedBuffer::Reduce::AtEnd;  ///< when sums of gradients begin on the CPU
  // On devices, what travels while they compute.
  bool overlap_gradients = true;  ///< a layer's gradients under the backward pass of the layers before it
  bool overlap_weights = true;    ///< new weights under the next step's beginning
};

}  // namespace emox
