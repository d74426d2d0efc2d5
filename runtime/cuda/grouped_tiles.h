// How blocks find their tiles of a grouped product: the device's side of grouped.h.
#pragma once

#include <cstdint>

#include "runtime/cuda/device.h"
#include "runtime/cuda/grouped.h"

namespace emox::cuda {

/// A tile of C: of Nt and Nn `lines` rows from row `first` of all; of Tn `lines` rows from row `first` of C[expert].
/// The expert's rows are [begin, end).
struct GroupedTile {
  std::int64_t expert, begin, end, first, lines, column;
};

/// Tiles of `tile` rows and `columns` columns in all.
template <GroupedKind kKind>
__device__ inline std::int64_t grouped_tiles(const GroupedProduct& p, const std::int64_t* plan, int tile, int columns) {
  const std::int64_t across = (p.n + columns - 1) / columns;
  if constexpr (kKind == GroupedKind::Tn) return plan[p.experts + 1] * p.experts * ((p.k + tile - 1) / tile) * across;
  return plan[p.experts] * across;
}

/// Tile `number`: tiles of one expert and of the same rows follow each other, so that blocks that run at the same time
/// read the same rows and weights.
template <GroupedKind kKind>
__device__ inline GroupedTile grouped_tile(const GroupedProduct& p, const std::int64_t* plan, int tile, int columns,
                                           std::int64_t number) {
  const std::int64_t across = (p.n + columns - 1) / columns, down = number / across;
  GroupedTile at{};
  at.column = number % across * columns;
  if constexpr (kKind == GroupedKind::Tn) {
    const std::int64_t tiles = (p.k + tile - 1) / tile;
    at.expert = down / tiles;
    at.begin = p.offsets[at.expert], at.end = p.offsets[at.expert + 1];
    at.first = down % tiles * tile;
    at.lines = p.k - at.first;
  } else {
    std::int64_t low = 0, high = p.experts;  // the last expert before whose tiles there are no more than `down`
    while (high - low > 1) {
      const std::int64_t middle = (low + high) / 2;
      (plan[middle] <= down ? low : high) = middle;
    }
    at.expert = low;
    at.begin = p.offsets[low], at.end = p.offsets[low + 1];
    at.first = at.begin + (down - plan[low]) * tile;
    at.lines = at.end - at.first;
  }
  if (at.lines > tile) at.lines = tile;
  return at;
}

}  // namespace emox::cuda
