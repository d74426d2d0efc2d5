// The sending side of a dispatch plan: a stable counting sort of rows and picks by destination, over many blocks
// (row_chunks.h). The integers are those of runtime/cpu/dispatch_plan.cpp.
//
// Nothing waits for the host, so contradictions become faults: the operand is the one that contradicts, the element the
// pick, row or count that shows it. Places come from what the kernels counted themselves, and are compared with the
// room before anything is written there.
#include "runtime/cuda/kernels.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/row_chunks.h"
#include "runtime/cuda/scratch_arrays.h"

namespace emox::cuda {
namespace {

using ops::Op;

/// counts [keys, chunks] -> the sums over the chunks before, totals [keys] over all. A block a key.
__global__ void __launch_bounds__(kChunkThreads) plan_sums_kernel(int* counts, std::int64_t* totals, int chunks) {
  int* const slots = &shared_memory<int>();
  int* const own = counts + static_cast<std::int64_t>(blockIdx.x) * chunks;
  const int threads = static_cast<int>(blockDim.x), each = (chunks + threads - 1) / threads;
  const int begin = static_cast<int>(threadIdx.x) * each, end = begin + each < chunks ? begin + each : chunks;
  int sum = 0;
  for (int i = begin; i < end; ++i) sum += own[i];
  const BlockSum sums = sum_before_thread(sum, slots);
  int before = sums.before;
  for (int i = begin; i < end; ++i) {
    const int count = own[i];
    own[i] = before;
    before += count;
  }
  if (threadIdx.x == 0) totals[blockIdx.x] = sums.all;
}

struct SendArguments {
  RowChunks in;
  const std::int32_t* destination;
  int experts, destinations, self;
  int* counts;           ///< [2 destinations, chunks]: rows, picks of each
  std::int64_t* totals;  ///< [destinations, 2]
  /// Null for count_destinations: [picks] 2 destination + (1 at the first pick of a sent row); -1: nowhere.
  std::int32_t* codes;
  const std::int64_t* announced;
  std::int32_t *row, *pick, *packed, *slots;
  std::int64_t sent_rows, width;
};

__device__ inline int destination_of_pick(const SendArguments& a, int pick) {
  const int expert = a.in.experts[pick];
  return expert >= 0 && expert < a.experts ? a.destination[expert] : -1;
}

__global__ void __launch_bounds__(kChunkThreads) plan_send_count_kernel(SendArguments a) {
  PlanShared& s = shared_memory<PlanShared>();
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int keys = 2 * a.destinations;
  int *const counts = plan_integers(s), *const own = counts + warp * keys;
  for (int i = static_cast<int>(threadIdx.x); i < keys * kChunkWarps; i += kChunkThreads) counts[i] = 0;
  __syncthreads();
  const auto clear_slots = [&](int turn, int rows, int, int) {
    if (a.codes == nullptr) return;
    for (std::int64_t i = lane; i < rows * a.width; i += kWarp) a.slots[turn * a.width + i] = -1;
  };
  for_picks_of_chunk(a.in, s.rows[warp], clear_slots, [&](const PickOfRow& p) {
    if (p.pick < 0) return;
    const int expert = a.in.experts[p.pick];
    const int d = destination_of_pick(a, p.pick);
    const bool there = d >= 0 && d < a.destinations;
    if (!there) report_fault(a.in.fault, a.in.op, expert >= 0 && expert < a.experts ? 3 : 2, p.pick);
    bool first = there;
    for (int q = p.begin; q < p.pick && first; ++q) first = destination_of_pick(a, q) != d;
    if (there) atomicAdd(&own[2 * d + 1], 1);
    if (first) atomicAdd(&own[2 * d], 1);
    if (a.codes != nullptr) a.codes[p.pick] = there ? 2 * d + (first ? 1 : 0) : -1;
  });
  __syncthreads();
  store_counts(a.counts, counts, keys, a.in.chunks);
}

/// base [2 destinations]: where each destination's rows and picks begin, in send order. The first block compares with
/// what was announced.
__device__ inline void find_send_bases(const SendArguments& a, int* base, int* slots) {
  const int each = (a.destinations + kChunkThreads - 1) / kChunkThreads;
  const int begin = static_cast<int>(threadIdx.x) * each;
  const int end = begin + each < a.destinations ? begin + each : a.destinations;
  const auto in_order = [&](int i) { return i == a.destinations - 1 ? a.self : i < a.self ? i : i + 1; };
  for (int kind = 0; kind < 2; ++kind) {
    int sum = 0;
    for (int i = begin; i < end; ++i) sum += static_cast<int>(a.totals[2 * in_order(i) + kind]);
    const BlockSum sums = sum_before_thread(sum, slots);
    int before = sums.before;
    for (int i = begin; i < end; ++i) {
      const int key = 2 * in_order(i) + kind;
      base[key] = before;
      before += static_cast<int>(a.totals[key]);
      if (blockIdx.x == 0 && a.totals[key] != a.announced[key]) report_fault(a.in.fault, a.in.op, 4, key);
    }
    const std::int64_t room = kind == 0 ? a.sent_rows : a.in.picks;
    if (blockIdx.x == 0 && threadIdx.x == 0 && sums.all != room) report_fault(a.in.fault, a.in.op, 1, sums.all);
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kChunkThreads) plan_send_place_kernel(SendArguments a) {
  PlanShared& s = shared_memory<PlanShared>();
  const int warp = static_cast<int>(threadIdx.x) / kWarp, keys = 2 * a.destinations;
  int *const base = plan_integers(s), *const places = base + keys, *const next = places + warp * keys;
  find_send_bases(a, base, s.slots);
  load_places(places, base, a.counts, keys, a.in.chunks);
  __syncthreads();
  for_picks_of_chunk(
      a.in, s.rows[warp], [](int, int, int, int) {},
      [&](const PickOfRow& p) {
        const int code = p.pick < 0 ? -1 : a.codes[p.pick], d = code < 0 ? -1 : code / 2;
        const bool first = code >= 0 && code % 2 == 1;
        const unsigned same = __match_any_sync(kAllLanes, d), firsts = same & __ballot_sync(kAllLanes, first ? 1 : 0);
        int row_place = 0, pick_place = 0;
        if (d >= 0) {
          row_place = next[2 * d] + __popc(firsts & lanes_before());
          pick_place = next[2 * d + 1] + __popc(same & lanes_before());
        }
        __syncwarp();
        if (d >= 0 && (same & lanes_before()) == 0) next[2 * d] += __popc(firsts), next[2 * d + 1] += __popc(same);
        __syncwarp();
        if (d < 0) return;
        if (pick_place < a.in.picks) {
          a.pick[pick_place] = p.pick;
          a.packed[pick_place] = 2 * a.in.experts[p.pick] + (first ? 1 : 0);
        }
        if (!first || row_place >= a.sent_rows) return;
        a.row[row_place] = p.row;
        int slot = 0;  // destinations of the row below this one
        for (int q = p.begin; q < a.in.first[p.row + 1]; ++q)
          slot += a.codes[q] >= 0 && a.codes[q] % 2 == 1 && a.codes[q] < code ? 1 : 0;
        if (slot < a.width)
          a.slots[p.row * a.width + slot] = row_place;
        else
          report_fault(a.in.fault, a.in.op, 1, p.row);
      });
}

SendArguments send_arguments(const RowChunks& chunks, const TensorView& destination, const TensorView& counts) {
  SendArguments a{};
  a.in = chunks;
  a.destination = destination.data<std::int32_t>();
  a.experts = static_cast<int>(destination.numel()), a.destinations = static_cast<int>(counts.dim(0));
  return a;
}

void count_by_destination(Queue& q, Op op, const SendArguments& a) {
  launch(q, op, plan_send_count_kernel,
         {a.in.blocks(), kChunkThreads, plan_shared(op, 2 * std::int64_t{a.destinations}, kChunkWarps)}, a);
  sum_over_chunks(q, op, a.counts, a.totals, 2 * std::int64_t{a.destinations}, a.in.chunks);
}

constexpr int kFirstThreads = 256;

__global__ void __launch_bounds__(kFirstThreads)
    first_picks_kernel(std::int32_t* first, std::int64_t n, std::int64_t each) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kFirstThreads + threadIdx.x;
  if (i < n) first[i] = static_cast<std::int32_t>(i * each);
}

/// One thread a sum: they are few, of a few numbers each.
__global__ void __launch_bounds__(kFirstThreads)
    sum_counts_kernel(std::int64_t* out, const std::int64_t* in, const std::int32_t* first, const std::int32_t* index,
                      std::int64_t n) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kFirstThreads + threadIdx.x;
  if (i >= n) return;
  std::int64_t sum = 0;
  for (std::int32_t j = first[i]; j < first[i + 1]; ++j) sum += in[index[j]];
  out[i] = sum;
}

}  // namespace

void sum_over_chunks(Queue& q, Op op, int* counts, std::int64_t* totals, std::int64_t keys, int chunks) {
  // Four counts a thread: kMostChunks of them are a whole block.
  const int warps = (chunks + 4 * kWarp - 1) / (4 * kWarp), most = kChunkWarps;
  const auto threads = static_cast<unsigned>(kWarp * (warps < most ? warps : most));
  launch(q, op, plan_sums_kernel, {dim3(static_cast<unsigned>(keys)), threads, kWarp * sizeof(int)}, counts, totals,
         chunks);
}

void first_picks(Context& ctx, TensorView first, std::int64_t picks_per_row) {
  launch(queue_of(ctx), Op::first_picks, first_picks_kernel, {blocks_of(first.numel(), kFirstThreads), kFirstThreads},
         first.data<std::int32_t>(), first.numel(), picks_per_row);
}

void count_destinations(Context& ctx, TensorView counts, const ops::RowPicks& in, TensorView destination) {
  Queue& q = queue_of(ctx);
  SendArguments a = send_arguments(row_chunks(in, Op::count_destinations, q.fault_word(ctx)), destination, counts);
  a.totals = counts.data<std::int64_t>();
  std::tie(a.counts) = scratch_arrays<int>(q, 2 * std::int64_t{a.destinations} * a.in.chunks);
  count_by_destination(q, Op::count_destinations, a);
}

void plan_send(Context& ctx, const ops::SendOrder& out, const ops::RowPicks& in, TensorView destination,
               TensorView counts, std::int64_t self) {
  Queue& q = queue_of(ctx);
  SendArguments a = send_arguments(row_chunks(in, Op::plan_send, q.fault_word(ctx)), destination, counts);
  a.self = static_cast<int>(self);
  a.announced = counts.data<std::int64_t>();
  a.row = out.row.data<std::int32_t>(), a.pick = out.pick.data<std::int32_t>();
  a.packed = out.packed.data<std::int32_t>(), a.slots = out.slots.data<std::int32_t>();
  a.sent_rows = out.row.numel(), a.width = out.slots.dim(1);
  const std::int64_t keys = 2 * std::int64_t{a.destinations};
  std::tie(a.counts, a.totals, a.codes) =
      scratch_arrays<int, std::int64_t, std::int32_t>(q, keys * a.in.chunks, keys, in.picks());
  count_by_destination(q, Op::plan_send, a);
  launch(q, Op::plan_send, plan_send_place_kernel,
         {a.in.blocks(), kChunkThreads, plan_shared(Op::plan_send, keys, kChunkWarps + 1)}, a);
}

void sum_counts(Context& ctx, TensorView out, TensorView in, TensorView first, TensorView index) {
  if (out.numel() == 0) return;
  launch(queue_of(ctx), Op::sum_counts, sum_counts_kernel, {blocks_of(out.numel(), kFirstThreads), kFirstThreads},
         out.data<std::int64_t>(), in.data<std::int64_t>(), first.data<std::int32_t>(), index.data<std::int32_t>(),
         out.numel());
}

}  // namespace emox::cuda
