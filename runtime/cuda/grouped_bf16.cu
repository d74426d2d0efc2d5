// Grouped products in bf16 on tensor cores (mma_tile.h, grouped_kernel.h): as many blocks as run at once, two a
// processor, take 128x128 tiles.
#include "runtime/cuda/grouped_kernel.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/mma_tile.h"

namespace emox::cuda {
namespace {

static_assert(kGroupedBf16Tile == kMmaTile);
constexpr int kGroupedBlocksAtOnce = 2;  // a processor, by their registers: 128 a thread for sums alone

template <bool kVector>
struct MmaMachine {
  using Shared = MmaShared;
  using Sum = MmaSum;
  static constexpr int kRows = kMmaTile, kColumns = kMmaTile;
  template <bool kAlongSum>
  using RowLoader = MmaLoader<kAlongSum, kVector>;
  template <bool kAlongSum>
  using ColumnLoader = MmaLoader<kAlongSum, kVector>;
  template <typename Rows, typename Columns>
  static __device__ __forceinline__ void multiply(Shared& s, Sum& sum, const Rows& a, const Columns& b,
                                                  std::int64_t depth) {
    mma_tile(s, sum, a, b, depth);
  }
  static __device__ __forceinline__ void add(Sum& sum, const float* c, std::int64_t stride, float factor) {
    add_scaled(sum, c, stride, factor);
  }
  template <typename F>
  static __device__ __forceinline__ void each_pair(const Sum& sum, F&& f) {
    for_each_pair(sum, f);
  }
};

template <GroupedKind kKind, bool kVector>
__global__ void __launch_bounds__(kMmaThreads, kGroupedBlocksAtOnce)
    grouped_bf16_kernel(GroupedProduct p, const std::int64_t* plan) {
  grouped_tiles_of_block<kKind, MmaMachine<kVector>>(p, plan);
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
  const auto kernel =
      of_kind(kind, grouped_bf16_kernel_of<GroupedKind::Nt>(vector), grouped_bf16_kernel_of<GroupedKind::Nn>(vector),
              grouped_bf16_kernel_of<GroupedKind::Tn>(vector));
  const std::int64_t blocks = grouped_blocks(kind, p, kMmaTile, kMmaTile, queue.processors() * kGroupedBlocksAtOnce);
  launch(queue, call.op, kernel, {blocks_of(blocks, 1), kMmaThreads, sizeof(MmaShared)}, p, plan);
}

}  // namespace emox::cuda
