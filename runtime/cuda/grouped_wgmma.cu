// Grouped products in bf16 on Hopper (wgmma_tile.h): one block a processor takes the 128x256 tiles of all experts one
// after the other. The rest is as in grouped_bf16.cu, and so is the result, up to the order inside of the tensor cores'
// sums.
#include <type_traits>

#include "runtime/cuda/grouped_store.h"
#include "runtime/cuda/grouped_tiles.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/wgmma_tile.h"

namespace emox::cuda {
namespace {

static_assert(kGroupedBf16Tile == kWgmmaRows && kGroupedWgmmaColumns == kWgmmaColumns);

template <GroupedKind kKind>
__global__ void __launch_bounds__(kWgmmaThreads, 1) grouped_wgmma_kernel(GroupedProduct p, const std::int64_t* plan) {
  auto& s = shared_memory<WgmmaShared>();
  const auto *pa = static_cast<const Bf16*>(p.a), *pb = static_cast<const Bf16*>(p.b);
  constexpr bool kTn = kKind == GroupedKind::Tn, kNt = kKind == GroupedKind::Nt;
  using C = std::conditional_t<kTn, float, Bf16>;
  const bool wide = p.n % 2 == 0 && reinterpret_cast<std::uintptr_t>(p.c) % (2 * sizeof(C)) == 0;
  const std::int64_t tiles = grouped_tiles<kKind>(p, plan, kWgmmaRows, kWgmmaColumns);
  for (std::int64_t number = blockIdx.x; number < tiles; number += gridDim.x) {
    const GroupedTile t = grouped_tile<kKind>(p, plan, kWgmmaRows, kWgmmaColumns, number);
    const std::int64_t columns = p.n - t.column;
    WgmmaSum sum;
    float beta = p.beta;
    C* c = static_cast<C*>(p.c) + t.column;
    if constexpr (kTn) {
      const std::int64_t depth = t.end - t.begin;
      if (depth == 0 && p.beta == 1.0F) continue;  // nothing is added
      wgmma_tile(s, sum, WgmmaLoader<false, kWgmmaRows>(pa + t.begin * p.k + t.first, p.k, t.lines, depth),
                 WgmmaLoader<false, kWgmmaColumns>(pb + t.begin * p.n + t.column, p.n, columns, depth), depth);
      c += (t.expert * p.k + t.first) * p.n;
      if (beta != 0.0F && wide && t.lines == kWgmmaRows && columns >= kWgmmaColumns) {
        add_scaled(sum, c, p.n, beta);
        beta = 0.0F;
      }
    } else {
      const Bf16* weight = pb + t.expert * p.n * p.k + t.column * (kNt ? p.k : 1);
      wgmma_tile(s, sum, WgmmaLoader<true, kWgmmaRows>(pa + t.first * p.k, p.k, t.lines, p.k),
                 WgmmaLoader<kNt, kWgmmaColumns>(weight, kNt ? p.k : p.n, columns, p.k), p.k);
      c += t.first * p.n;
    }
    for_each_pair(sum, [&](int row, int column, float x, float y) {
      if (row < t.lines && column < columns) store_pair(c + row * p.n + column, x, y, beta, column + 1 < columns, wide);
    });
  }
}

}  // namespace

void grouped_wgmma(Queue& queue, const GroupedCall& call, GroupedKind kind, const GroupedProduct& p,
                   const std::int64_t* plan) {
  const auto kernel = kind == GroupedKind::Nt   ? grouped_wgmma_kernel<GroupedKind::Nt>
                      : kind == GroupedKind::Nn ? grouped_wgmma_kernel<GroupedKind::Nn>
                                                : grouped_wgmma_kernel<GroupedKind::Tn>;
  const std::int64_t blocks = grouped_blocks(kind, p, kWgmmaRows, kWgmmaColumns, queue.processors());
  launch(queue, call.op, kernel, {blocks_of(blocks, 1), kWgmmaThreads, sizeof(WgmmaShared)}, p, plan);
}

}  // namespace emox::cuda
