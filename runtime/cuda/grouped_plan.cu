// The tiles of grouped products: one block checks the experts' offsets and adds up their tiles, 256 experts at a time.
#include "runtime/cuda/grouped_tiles.h"
#include "runtime/cuda/launch.h"

namespace emox::cuda {
namespace {

constexpr int kPlanThreads = 256;

struct GroupedPlanShared {
  std::int64_t bad[kWarp + 1];
  int tiles[kPlanThreads / kWarp];
};

struct SmallerIndex {
  __device__ std::int64_t operator()(std::int64_t a, std::int64_t b) const { return a < b ? a : b; }
};

__global__ void __launch_bounds__(kPlanThreads)
    grouped_plan_kernel(std::int64_t* plan, const std::int64_t* offsets, std::int64_t experts, std::int64_t rows,
                        int tile, double* fault, ops::Op op, int operand) {
  auto& s = shared_memory<GroupedPlanShared>();
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  std::int64_t bad = experts + 1;
  for (std::int64_t e = thread; e <= experts; e += kPlanThreads) {
    const std::int64_t before = e == 0 ? 0 : offsets[e - 1], at = offsets[e];
    if ((at < before || (e == 0 && at != 0) || (e == experts && at != rows)) && e < bad) bad = e;
  }
  bad = over_block(bad, s.bad, SmallerIndex());
  if (bad <= experts) {
    for (std::int64_t e = thread; e < experts + 2; e += kPlanThreads) plan[e] = 0;
    if (thread == 0) report_fault(fault, op, operand, bad);
    return;
  }
  std::int64_t before = 0;  // tiles of the experts of earlier rounds
  for (std::int64_t first = 0; first < experts; first += kPlanThreads) {
    const std::int64_t e = first + thread;
    const int own = e < experts ? static_cast<int>((offsets[e + 1] - offsets[e] + tile - 1) / tile) : 0;
    int sum = own;
    for (int lanes = 1; lanes < kWarp; lanes *= 2) {
      const int below = __shfl_up_sync(kAllLanes, sum, static_cast<unsigned>(lanes));
      if (lane >= lanes) sum += below;
    }
    __syncthreads();  // the sums of the round before are used up
    if (lane == kWarp - 1) s.tiles[warp] = sum;
    __syncthreads();
    std::int64_t earlier = 0, all = 0;
    for (int w = 0; w < kPlanThreads / kWarp; ++w) {
      if (w < warp) earlier += s.tiles[w];
      all += s.tiles[w];
    }
    if (e < experts) plan[e] = before + earlier + sum - own;
    before += all;
  }
  if (thread == 0) plan[experts] = before, plan[experts + 1] = 1;
}

}  // namespace

void plan_groups(Queue& queue, const GroupedCall& call, const GroupedProduct& p, int tile, double* fault,
                 std::int64_t* plan) {
  launch(queue, call.op, grouped_plan_kernel, {1, kPlanThreads, sizeof(GroupedPlanShared)}, plan, p.offsets, p.experts,
         p.rows, tile, fault, call.op, call.operand);
}

void grouped_product(Context& ctx, const GroupedCall& call, GroupedKind kind, const TensorView& c, const TensorView& a,
                     const TensorView& b, const TensorView& offsets, float beta) {
  Queue& queue = queue_of(ctx);
  const std::int64_t experts = offsets.dim(0) - 1;
  const GroupedProduct p{.c = c.raw(),
                         .a = a.raw(),
                         .b = b.raw(),
                         .offsets = offsets.data<std::int64_t>(),
                         .experts = experts,
                         .rows = a.dim(0),
                         .n = c.dim(c.rank() - 1),
                         .k = a.dim(1),
                         .beta = beta};
  auto* plan = static_cast<std::int64_t*>(queue.scratch(idx(experts + 2) * sizeof(std::int64_t)));
  const bool low = a.dtype() == DType::BF16;
  plan_groups(queue, call, p, low ? kGroupedBf16Tile : kGroupedF32Tile, queue.fault_word(ctx), plan);
  (low ? grouped_bf16 : grouped_f32)(queue, call, kind, p, plan);
}

}  // namespace emox::cuda
