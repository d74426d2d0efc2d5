// Grouped products in bf16 on Hopper (wgmma_tile.h, grouped_kernel.h): one block a processor takes 128x256 tiles. The
// result is that of grouped_bf16.cu, up to the order inside of the tensor cores' sums.
#include "runtime/cuda/grouped_kernel.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/wgmma_tile.h"

namespace emox::cuda {
namespace {

static_assert(kGroupedBf16Tile == kWgmmaRows && kGroupedWgmmaColumns == kWgmmaColumns);

struct WgmmaMachine {
  using Shared = WgmmaShared;
  using Sum = WgmmaSum;
  static constexpr int kRows = kWgmmaRows, kColumns = kWgmmaColumns;
  template <bool kAlongSum>
  using RowLoader = WgmmaLoader<kAlongSum, kWgmmaRows>;
  template <bool kAlongSum>
  using ColumnLoader = WgmmaLoader<kAlongSum, kWgmmaColumns>;
  template <typename Rows, typename Columns>
  static __device__ __forceinline__ void multiply(Shared& s, Sum& sum, const Rows& a, const Columns& b,
                                                  std::int64_t depth) {
    wgmma_tile(s, sum, a, b, depth);
  }
  static __device__ __forceinline__ void add(Sum& sum, const float* c, std::int64_t stride, float factor) {
    add_scaled(sum, c, stride, factor);
  }
  template <typename F>
  static __device__ __forceinline__ void each_pair(const Sum& sum, F&& f) {
    for_each_pair(sum, f);
  }
};

template <GroupedKind kKind>
__global__ void __launch_bounds__(kWgmmaThreads, 1) grouped_wgmma_kernel(GroupedProduct p, const std::int64_t* plan) {
  grouped_tiles_of_block<kKind, WgmmaMachine>(p, plan);
}

}  // namespace

void grouped_wgmma(Queue& queue, const GroupedCall& call, GroupedKind kind, const GroupedProduct& p,
                   const std::int64_t* plan) {
  const auto kernel = of_kind(kind, grouped_wgmma_kernel<GroupedKind::Nt>, grouped_wgmma_kernel<GroupedKind::Nn>,
                              grouped_wgmma_kernel<GroupedKind::Tn>);
  const std::int64_t blocks = grouped_blocks(kind, p, kWgmmaRows, kWgmmaColumns, queue.processors());
  launch(queue, call.op, kernel, {blocks_of(blocks, 1), kWgmmaThreads, sizeof(WgmmaShared)}, p, plan);
}

}  // namespace emox::cuda
