// Grouped products in bf16 on tensor cores (mma_tile.h). As many blocks as run at once, two a processor, take the
// 128x128 tiles of all experts one after the other. C goes straight from registers to memory: against the reads of a
// tile its writes are few. A sum over an expert's rows (Tn) stays whole in one block, so that no order is left open.
#include <type_traits>

#include "runtime/cuda/grouped_store.h"
#include "runtime/cuda/grouped_tiles.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/mma_tile.h"

namespace emox::cuda {
namespace {

static_assert(kGroupedBf16Tile == kMmaTile);
constexpr int kGroupedBlocksAtOnce = 2;  // a processor, by their registers: 128 a thread for sums alone

template <GroupedKind kKind, bool kVector>
__global__ void __launch_bounds__(kMmaThreads, kGroupedBlocksAtOnce)
    grouped_bf16_kernel(GroupedProduct p, const std::int64_t* plan) {
  auto& s = shared_memory<MmaShared>();
  const auto *pa = static_cast<const Bf16*>(p.a), *pb = static_cast<const Bf16*>(p.b);
  constexpr bool kTn = kKind == GroupedKind::Tn, kNt = kKind == GroupedKind::Nt;
  using C = std::conditional_t<kTn, float, Bf16>;
  const bool wide = p.n % 2 == 0 && reinterpret_cast<std::uintptr_t>(p.c) % (2 * sizeof(C)) == 0;
  const std::int64_t tiles = grouped_tiles<kKind>(p, plan, kMmaTile, kMmaTile);
  for (std::int64_t number = blockIdx.x; number < tiles; number += gridDim.x) {
    const GroupedTile t = grouped_tile<kKind>(p, plan, kMmaTile, kMmaTile, number);
    const std::int64_t columns = p.n - t.column;
    MmaSum sum;
    float beta = p.beta;
    C* c = static_cast<C*>(p.c) + t.column;
    if constexpr (kTn) {
      const std::int64_t depth = t.end - t.begin;
      if (depth == 0 && p.beta == 1.0F) continue;  // nothing is added
      mma_tile(s, sum, MmaLoader<false, kVector>(pa + t.begin * p.k + t.first, p.k, t.lines, depth),
               MmaLoader<false, kVector>(pb + t.begin * p.n + t.column, p.n, columns, depth), depth);
      c += (t.expert * p.k + t.first) * p.n;
      if (beta != 0.0F && wide && t.lines == kGroupedBf16Tile && columns >= kGroupedBf16Tile) {
        add_scaled(sum, c, p.n, beta);
        beta = 0.0F;
      }
    } else {
      const Bf16* weight = pb + t.expert * p.n * p.k + t.column * (kNt ? p.k : 1);
      mma_tile(s, sum, MmaLoader<true, kVector>(pa + t.first * p.k, p.k, t.lines, p.k),
               MmaLoader<kNt, kVector>(weight, kNt ? p.k : p.n, columns, p.k), p.k);
      c += t.first * p.n;
    }
    for_each_pair(sum, [&](int row, int column, float x, float y) {
      if (row < t.lines && column < columns) store_pair(c + row * p.n + column, x, y, beta, column + 1 < columns, wide);
    });
  }
}

template <GroupedKind kKind>
auto grouped_bf16_kernel_of(bool vector) {
  return vector ? grouped_bf16_kernel<kKind, true> : grouped_bf16_kernel<kKind, false>;
}

}  // namespace

void grouped_bf16(Queue& queue, const GroupedCall& call, GroupedKind kind, const GroupedProduct& p,
                  const std::int64_t* plan) {
  const auto aligned = [](const void* at) { return reinterpret_cast<std::uintptr_t>(at) % 16 == 0; };
  // Of Nt only K lies in rows of memory; of the others n, too.
  const bool vector = aligned(p.a) && aligned(p.b) && p.k % 8 == 0 && (kind == GroupedKind::Nt || p.n % 8 == 0);
  if (vector && queue.uses_wgmma()) return grouped_wgmma(queue, call, kind, p, plan);
  const auto kernel = kind == GroupedKind::Nt   ? grouped_bf16_kernel_of<GroupedKind::Nt>(vector)
                      : kind == GroupedKind::Nn ? grouped_bf16_kernel_of<GroupedKind::Nn>(vector)
                                                : grouped_bf16_kernel_of<GroupedKind::Tn>(vector);
  const std::int64_t blocks = grouped_blocks(kind, p, kMmaTile, kMmaTile, queue.processors() * kGroupedBlocksAtOnce);
  launch(queue, call.op, kernel, {blocks_of(blocks, 1), kMmaThreads, sizeof(MmaShared)}, p, plan);
}

}  // namespace emox::cuda
