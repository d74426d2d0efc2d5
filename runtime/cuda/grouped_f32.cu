// Grouped products in f32: equality with the CPU, moderate speed. A block makes 64x64 tiles, every so manyth of all.
#include "runtime/cuda/grouped_tiles.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/simt_tile.h"

namespace emox::cuda {
namespace {

static_assert(kGroupedF32Tile == kSimtTile);
constexpr int kGroupedF32BlocksAtOnce = 6;  // a processor

template <GroupedKind kKind>
__global__ void __launch_bounds__(kSimtThreads) grouped_f32_kernel(GroupedProduct p, const std::int64_t* plan) {
  auto& s = shared_memory<SimtShared>();
  const auto *pa = static_cast<const float*>(p.a), *pb = static_cast<const float*>(p.b);
  auto* pc = static_cast<float*>(p.c);
  const std::int64_t tiles = grouped_tiles<kKind>(p, plan, kSimtTile, kSimtTile);
  for (std::int64_t number = blockIdx.x; number < tiles; number += gridDim.x) {
    const GroupedTile t = grouped_tile<kKind>(p, plan, kSimtTile, kSimtTile, number);
    const std::int64_t columns = p.n - t.column;
    float sum[4][4];
    if constexpr (kKind == GroupedKind::Tn) {
      const SimtOperand<float> a{pa + t.begin * p.k + t.first, 1, p.k, t.lines};
      const SimtOperand<float> b{pb + t.begin * p.n + t.column, 1, p.n, columns};
      simt_tile(s, sum, a, b, t.end - t.begin);
      store_simt(pc + (t.expert * p.k + t.first) * p.n + t.column, p.n, t.lines, columns, sum, p.beta);
    } else {
      constexpr bool kNt = kKind == GroupedKind::Nt;
      const SimtOperand<float> a{pa + t.first * p.k, p.k, 1, t.lines};
      const SimtOperand<float> b{pb + t.expert * p.n * p.k + t.column * (kNt ? p.k : 1), kNt ? p.k : 1, kNt ? 1 : p.n,
                                 columns};
      simt_tile(s, sum, a, b, p.k);
      store_simt(pc + t.first * p.n + t.column, p.n, t.lines, columns, sum, 0.0F);
    }
  }
}

}  // namespace

void grouped_f32(Queue& queue, const GroupedCall& call, GroupedKind kind, const GroupedProduct& p,
                 const std::int64_t* plan) {
  const std::int64_t blocks =
      grouped_blocks(kind, p, kSimtTile, kSimtTile, queue.processors() * kGroupedF32BlocksAtOnce);
  const auto kernel = kind == GroupedKind::Nt   ? grouped_f32_kernel<GroupedKind::Nt>
                      : kind == GroupedKind::Nn ? grouped_f32_kernel<GroupedKind::Nn>
                                                : grouped_f32_kernel<GroupedKind::Tn>;
  launch(queue, call.op, kernel, {blocks_of(blocks, 1), kSimtThreads, sizeof(SimtShared)}, p, plan);
}

}  // namespace emox::cuda
