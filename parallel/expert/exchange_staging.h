// Buffers for one transfer at a time, shared by all layers of a model.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/core/arena.h"
#include "runtime/core/pinned.h"

namespace emox {

struct ExchangeStaging {
  GrowingTensor* send = nullptr;       ///< f32 [rows, width] what leaves
  GrowingTensor* arrive[2] = {};       ///< f32 [rows, width] what is here after a hop, or after its way back
  GrowingTensor* pick_send = nullptr;  ///< f32 [picks] gates or their gradients
  GrowingTensor* pick_arrive[2] = {};
  GrowingTensor* packed_send = nullptr;    ///< i32 [picks] what destinations are told (ops::SendOrder)
  GrowingTensor* packed_arrive = nullptr;  ///< i32 [picks]
  GrowingTensor* experts = nullptr;        ///< i32 [picks] ops::RowPicks of the rows that arrived
  GrowingTensor* first = nullptr;          ///< i32 [rows + 1]
  std::size_t micro_batch = 0;             ///< whose rows travel
  bool again = false;                      ///< its forward pass runs once more: its counts are known
  bool overlap = true;                     ///< on a device: rows travel while the compute queue goes on
  PinnedMemory counts;                     ///< on a device: what the host reads of a plan

  /// For micro-batches of at most `tokens` tokens. Again for a larger one.
  void reserve(Arena& arena, std::int64_t tokens, std::int64_t top_k, std::int64_t width, int ranks, int hops);
};

}  // namespace emox
