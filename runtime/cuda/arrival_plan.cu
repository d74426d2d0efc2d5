// The arriving side of a dispatch plan: the picks that were sent, and a stable counting sort by local expert, over many
// blocks (row_chunks.h). The integers are those of runtime/cpu/dispatch_plan.cpp; contradictions are faults, as in
// dispatch_plan.cu.
#include "runtime/cuda/kernels.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/row_chunks.h"
#include "runtime/cuda/scratch_arrays.h"

namespace emox::cuda {
namespace {

using ops::Op;

struct UnpackArguments {
  std::int32_t *experts, *first;
  const std::int32_t* packed;
  int* counts;  ///< [blocks] rows that begin there
  int rows, picks;
  double* fault;
};

constexpr int kUnpackThreads = 256, kUnpackPicks = 4;  // picks of a thread

/// Rows that begin among the thread's picks; a bit for each that does.
__device__ inline int rows_of_thread(const UnpackArguments& a, std::int64_t begin, unsigned& bits) {
  bits = 0;
  for (int i = 0; i < kUnpackPicks; ++i)
    if (begin + i < a.picks && (a.packed[begin + i] & 1) != 0) bits |= 1U << i;
  return __popc(bits);
}

__global__ void __launch_bounds__(kUnpackThreads) unpack_picks_count_kernel(UnpackArguments a) {
  int* const slots = &shared_memory<int>();
  unsigned bits;
  const int rows =
      rows_of_thread(a, (static_cast<std::int64_t>(blockIdx.x) * kUnpackThreads + threadIdx.x) * kUnpackPicks, bits);
  const BlockSum sums = sum_before_thread(rows, slots);
  if (threadIdx.x == 0) a.counts[blockIdx.x] = sums.all;
}

__global__ void __launch_bounds__(kUnpackThreads) unpack_picks_kernel(UnpackArguments a) {
  int* const slots = &shared_memory<int>();
  int before = 0, all = 0;  // rows that begin in blocks before this one, and in all
  for (int b = static_cast<int>(threadIdx.x); b < static_cast<int>(gridDim.x); b += kUnpackThreads) {
    if (b < static_cast<int>(blockIdx.x)) before += a.counts[b];
    all += a.counts[b];
  }
  before = sum_before_thread(before, slots).all;
  all = sum_before_thread(all, slots).all;
  const std::int64_t begin = (static_cast<std::int64_t>(blockIdx.x) * kUnpackThreads + threadIdx.x) * kUnpackPicks;
  unsigned bits;
  const int own = rows_of_thread(a, begin, bits);
  int row = before + sum_before_thread(own, slots).before;
  for (int i = 0; i < kUnpackPicks && begin + i < a.picks; ++i) {
    a.experts[begin + i] = a.packed[begin + i] >> 1;
    if ((bits >> i & 1U) == 0) continue;
    if (row < a.rows) a.first[row] = static_cast<std::int32_t>(begin + i);
    ++row;
  }
  if (blockIdx.x != 0) return;
  // After the last row, and for rows that were announced but did not come.
  for (int i = (all < a.rows ? all : a.rows) + static_cast<int>(threadIdx.x); i <= a.rows; i += kUnpackThreads)
    a.first[i] = a.picks;
  if (threadIdx.x != 0) return;
  if (all != a.rows) report_fault(a.fault, Op::unpack_picks, 1, all < a.rows ? all : a.rows);
  if (a.picks > 0 && (a.packed[0] & 1) == 0) report_fault(a.fault, Op::unpack_picks, 2, 0);
}

struct ExpertArguments {
  RowChunks in;
  const std::int64_t* source_rows;
  const std::int32_t* local_expert;  ///< null: all experts are here
  int ranks, self, all_experts, local_experts;
  int* counts;           ///< [local experts, chunks]
  std::int64_t* totals;  ///< [local experts]
  std::int64_t* offsets;
  std::int32_t *row, *pick, *slots;
  std::int64_t width;
};

/// The rows with their turns: this rank's own lie last, but take their turn among the sources.
__device__ inline RowChunks rows_in_turn(const ExpertArguments& a) {
  long long before = 0, all = 0;
  for (int r = static_cast<int>(threadIdx.x) % kWarp; r < a.ranks; r += kWarp) {
    if (r < a.self) before += a.source_rows[r];
    all += a.source_rows[r];
  }
  before = over_warp(before, Plus());
  all = over_warp(all, Plus());
  RowChunks in = a.in;
  const long long own = a.source_rows[a.self];
  if (all == in.rows && before >= 0 && own >= 0 && before + own <= all)
    in.own_turn = static_cast<int>(before), in.own_rows = static_cast<int>(own);
  else if (threadIdx.x == 0)
    report_fault(in.fault, in.op, 3, a.self);
  return in;
}

/// -1: not here.
__device__ inline int local_expert_of(const ExpertArguments& a, int pick) {
  const int expert = a.in.experts[pick];
  if (expert < 0 || expert >= a.all_experts) return -1;
  const int e = a.local_expert == nullptr ? expert : a.local_expert[expert];
  return e < a.local_experts ? e : -1;
}

__global__ void __launch_bounds__(kChunkThreads) plan_experts_count_kernel(ExpertArguments a) {
  PlanShared& s = shared_memory<PlanShared>();
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  int *const counts = plan_integers(s), *const own = counts + warp * a.local_experts;
  for (int i = static_cast<int>(threadIdx.x); i < a.local_experts * kChunkWarps; i += kChunkThreads) counts[i] = 0;
  __syncthreads();
  const RowChunks in = rows_in_turn(a);
  const auto clear_slots = [&](int turn, int rows, int row, int picks) {
    if (picks > a.width) report_fault(in.fault, in.op, 1, row);
    for (std::int64_t i = lane; i < rows * a.width; i += kWarp)
      a.slots[in.row_of_turn(turn + static_cast<int>(i / a.width)) * a.width + i % a.width] = -1;
  };
  for_picks_of_chunk(in, s.rows[warp], clear_slots, [&](const PickOfRow& p) {
    if (p.pick < 0) return;
    const int e = local_expert_of(a, p.pick);
    if (e >= 0)
      atomicAdd(&own[e], 1);
    else
      report_fault(in.fault, in.op, 2, p.pick);
  });
  __syncthreads();
  store_counts(a.counts, counts, a.local_experts, in.chunks);
}

__global__ void __launch_bounds__(kChunkThreads) plan_experts_place_kernel(ExpertArguments a) {
  PlanShared& s = shared_memory<PlanShared>();
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, keys = a.local_experts;
  int *const base = plan_integers(s), *const places = base + keys, *const next = places + warp * keys;
  const int each = (keys + kChunkThreads - 1) / kChunkThreads;
  const int begin = thread * each, end = begin + each < keys ? begin + each : keys;
  int sum = 0;
  for (int e = begin; e < end; ++e) sum += static_cast<int>(a.totals[e]);
  const BlockSum sums = sum_before_thread(sum, s.slots);
  int before = sums.before;
  for (int e = begin; e < end; ++e) {
    base[e] = before;
    if (blockIdx.x == 0) a.offsets[e] = before;
    before += static_cast<int>(a.totals[e]);
  }
  if (blockIdx.x == 0 && thread == 0) a.offsets[keys] = sums.all;
  __syncthreads();
  load_places(places, base, a.counts, keys, a.in.chunks);
  __syncthreads();
  const RowChunks in = rows_in_turn(a);
  for_picks_of_chunk(
      in, s.rows[warp], [](int, int, int, int) {},
      [&](const PickOfRow& p) {
        const int e = p.pick < 0 ? -1 : local_expert_of(a, p.pick);
        const unsigned same = __match_any_sync(kAllLanes, e);
        const int place = e < 0 ? 0 : next[e] + __popc(same & lanes_before());
        __syncwarp();
        if (e >= 0 && (same & lanes_before()) == 0) next[e] += __popc(same);
        __syncwarp();
        if (e < 0 || place >= in.picks) return;
        a.row[place] = p.row;
        a.pick[place] = p.pick;
        if (p.pick - p.begin < a.width) a.slots[p.row * a.width + p.pick - p.begin] = place;
      });
}

}  // namespace

void unpack_picks(Context& ctx, const ops::RowPicks& out, TensorView packed) {
  Queue& q = queue_of(ctx);
  UnpackArguments a{};
  a.experts = out.experts.data<std::int32_t>(), a.first = out.first.data<std::int32_t>();
  a.packed = packed.data<std::int32_t>();
  a.rows = static_cast<int>(out.rows()), a.picks = static_cast<int>(out.picks());
  a.fault = q.fault_word(ctx);
  dim3 blocks = blocks_of(out.picks(), kUnpackThreads * kUnpackPicks);
  if (blocks.x == 0) blocks.x = 1;
  std::tie(a.counts) = scratch_arrays<int>(q, blocks.x);
  launch(q, Op::unpack_picks, unpack_picks_count_kernel, {blocks, kUnpackThreads, kWarp * sizeof(int)}, a);
  launch(q, Op::unpack_picks, unpack_picks_kernel, {blocks, kUnpackThreads, kWarp * sizeof(int)}, a);
}

void plan_experts(Context& ctx, const ops::ExpertOrder& out, const ops::RowPicks& in, TensorView source_rows,
                  TensorView local_expert, std::int64_t self) {
  Queue& q = queue_of(ctx);
  ExpertArguments a{};
  a.in = row_chunks(in, Op::plan_experts, q.fault_word(ctx));
  a.source_rows = source_rows.data<std::int64_t>();
  a.local_expert = local_expert.null() ? nullptr : local_expert.data<std::int32_t>();
  a.ranks = static_cast<int>(source_rows.numel()), a.self = static_cast<int>(self);
  a.local_experts = static_cast<int>(out.offsets.dim(0) - 1);
  a.all_experts = local_expert.null() ? a.local_experts : static_cast<int>(local_expert.numel());
  a.offsets = out.offsets.data<std::int64_t>();
  a.row = out.row.data<std::int32_t>(), a.pick = out.pick.data<std::int32_t>();
  a.slots = out.slots.data<std::int32_t>(), a.width = out.slots.dim(1);
  std::tie(a.counts, a.totals) =
      scratch_arrays<int, std::int64_t>(q, std::int64_t{a.local_experts} * a.in.chunks, a.local_experts);
  launch(q, Op::plan_experts, plan_experts_count_kernel,
         {a.in.blocks(), kChunkThreads, plan_shared(Op::plan_experts, a.local_experts, kChunkWarps)}, a);
  sum_over_chunks(q, Op::plan_experts, a.counts, a.totals, a.local_experts, a.in.chunks);
  launch(q, Op::plan_experts, plan_experts_place_kernel,
         {a.in.blocks(), kChunkThreads, plan_shared(Op::plan_experts, a.local_experts, kChunkWarps + 1)}, a);
}

}  // namespace emox::cuda
