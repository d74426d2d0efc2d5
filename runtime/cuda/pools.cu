// Pools of documents: scores, members, and what they reach.
//
// Documents have 1 to thousands of tokens, so none of this is a block a document. Scores: a block sums kWindowTokens
// tokens for a tile of columns, all loads in flight at once, and writes the scores of documents that lie inside; those
// that cross a boundary get f64 partial sums, at most two a window, which a second kernel adds in the order of the
// windows. Members: a warp a document finds the score of the last member bit by bit, linear in the experts.
#include <cmath>

#include "runtime/core/error.h"
#include "runtime/cuda/documents.h"
#include "runtime/cuda/kernels.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/router_rows.h"
#include "runtime/cuda/scratch_arrays.h"

namespace emox::cuda {
namespace {

using ops::Op;

constexpr int kWindowTokens = 32, kScoreColumns = 128, kLoads = 8, kPoolThreads = 256;
static_assert(kWindowTokens % kLoads == 0);

struct ScoreArguments {
  float* scores;    ///< [documents, n]
  double* partial;  ///< [windows, 2, n]: of the document that began before the window, and of one that goes on after it
  const float* p;   ///< [tokens, width]
  const std::int32_t* segments;
  std::int64_t tokens, width, n;
  int documents, tiles;
};

__global__ void __launch_bounds__(kScoreColumns) document_scores_kernel(ScoreArguments a) {
  const std::int64_t window = blockIdx.x / a.tiles, begin = window * kWindowTokens;
  const std::int64_t end = begin + kWindowTokens < a.tokens ? begin + kWindowTokens : a.tokens;
  int document = document_of_warp(a.segments, a.documents, begin);
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x % a.tiles) * kScoreColumns + threadIdx.x;
  if (column >= a.n) return;
  std::int64_t document_end = a.segments[document + 1];
  bool from_before = a.segments[document] < begin;
  double sum = 0;
  const auto keep = [&](bool goes_on) {
    if (!from_before && !goes_on)
      a.scores[static_cast<std::int64_t>(document) * a.n + column] = static_cast<float>(sum);
    else
      a.partial[(2 * window + (from_before ? 0 : 1)) * a.n + column] = sum;
  };
  for (std::int64_t base = begin; base < end; base += kLoads) {
    float v[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) v[i] = base + i < end ? a.p[(base + i) * a.width + column] : 0.0F;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      if (base + i >= end) break;
      sum += static_cast<double>(v[i]);
      if (base + i + 1 < document_end || base + i + 1 == end) continue;
      keep(false);
      do ++document;  // past empty ones
      while (a.segments[document + 1] <= base + i + 1);
      document_end = a.segments[document + 1];
      from_before = false;
      sum = 0;
    }
  }
  keep(document_end > end);
}

__global__ void __launch_bounds__(kScoreColumns) document_scores_of_windows_kernel(ScoreArguments a) {
  const std::int64_t document = blockIdx.x / a.tiles, first = a.segments[document], end = a.segments[document + 1];
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x % a.tiles) * kScoreColumns + threadIdx.x;
  if (column >= a.n) return;
  float& score = a.scores[document * a.n + column];
  if (first == end) {
    score = 0;
    return;
  }
  const std::int64_t first_window = first / kWindowTokens, last_window = (end - 1) / kWindowTokens;
  if (first_window == last_window) return;
  double sum = a.partial[(2 * first_window + 1) * a.n + column];
#pragma unroll 8
  for (std::int64_t w = first_window + 1; w <= last_window; ++w) sum += a.partial[2 * w * a.n + column];
  score = static_cast<float>(sum);
}

template <int kSlots>
__global__ void __launch_bounds__(kPoolThreads)
    document_pools_kernel(std::uint8_t* pools, const float* all_scores, const std::int32_t* sizes,
                          std::int64_t documents, int n) {
  const std::int64_t document = warp_of_grid();
  if (document >= documents) return;
  std::uint8_t* const pool = pools + document * n;
  const float* const scores = all_scores + document * n;
  const int size = sizes[document];
  if (size >= n || size <= 0) {
    for_columns<kSlots>(n, [&](int, int column) { pool[column] = size > 0 ? 1 : 0; });
    return;
  }
  const auto number_of = [&](int column) {  // NaN: the lowest
    const float s = scores[column];
    return ordered_bits(s > -INFINITY ? s : -INFINITY);
  };
  LaneColumns<unsigned, kSlots == 0 ? 1 : kSlots> numbers(nullptr);
  if constexpr (kSlots > 0) for_columns<kSlots>(n, [&](int i, int column) { numbers[i] = number_of(column); });
  const auto number = [&](int i, int column) {
    if constexpr (kSlots > 0)
      return numbers[i];
    else
      return number_of(column);
  };
  // The largest number that at least `size` experts reach: that of the last member.
  unsigned last = 0;
  for (unsigned bit = 1U << 31; bit != 0; bit >>= 1) {
    unsigned reach = 0;
    for_columns<kSlots>(n, [&](int i, int column) { reach += number(i, column) >= (last | bit) ? 1 : 0; });
    if (__reduce_add_sync(kAllLanes, reach) >= static_cast<unsigned>(size)) last |= bit;
  }
  unsigned higher = 0;
  for_columns<kSlots>(n, [&](int i, int column) { higher += number(i, column) > last ? 1 : 0; });
  int left = size - static_cast<int>(__reduce_add_sync(kAllLanes, higher));  // of equal ones, for the lowest columns
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int i = 0; i < (kSlots > 0 ? kSlots : (n + kWarp - 1) / kWarp); ++i) {
    const int column = kWarp * i + lane;
    const unsigned own = column < n ? number(i, column) : 0;
    const unsigned equal = __ballot_sync(kAllLanes, own == last ? 1 : 0);
    const bool member = own > last || (own == last && __popc(equal & ((1U << lane) - 1)) < left);
    if (column < n) pool[column] = member ? 1 : 0;
    left -= __popc(equal);
  }
}

struct ReachArguments {
  unsigned long long *limit, *reached;
  unsigned* freed;           ///< [documents] free tokens; null: not asked
  const std::uint8_t* pool;  ///< null: all experts
  const std::int32_t *segments, *destination;
  const std::uint8_t* free_tokens;
  std::int64_t tokens;
  int documents, experts, destinations;
  double* fault;
};

__global__ void __launch_bounds__(kPoolThreads) pool_reach_clear_kernel(ReachArguments a) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < a.destinations) a.limit[i] = 0;
  if (i == 0) *a.reached = 0;
  if (a.freed != nullptr && i < a.documents) a.freed[i] = 0;
}

// Free tokens of each document: a thread a token, one addition a warp where it has one document.
__global__ void __launch_bounds__(kPoolThreads) pool_reach_free_kernel(ReachArguments a) {
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const bool free = t < a.tokens && a.free_tokens[t] != 0;
  const unsigned all = __ballot_sync(kAllLanes, free ? 1 : 0);
  if (all == 0) return;
  const int document = free ? document_of(a.segments, a.documents, t) : -1;
  const unsigned same = __match_any_sync(kAllLanes, document);
  if (free && __ffs(static_cast<int>(same)) - 1 == static_cast<int>(threadIdx.x) % kWarp)
    atomicAdd(&a.freed[document], static_cast<unsigned>(__popc(same)));
}

// A warp a document at a time. Shared: the rows for each destination that the block counted, a bit for each destination
// that has an expert, then for each warp a bit for each that its document reaches.
__global__ void __launch_bounds__(kPoolThreads) pool_reach_kernel(ReachArguments a) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int words = (a.destinations + kWarp - 1) / kWarp;
  unsigned* const rows = &shared_memory<unsigned>();
  unsigned *const used = rows + a.destinations, *const reached = used + (1 + warp) * words;
  const auto set = [&](unsigned* bits, int expert) {
    const int d = a.destination[expert];
    if (d >= 0 && d < a.destinations)
      atomicOr(&bits[d / kWarp], 1U << d % kWarp);
    else
      report_fault(a.fault, Op::pool_reach, 5, expert);
  };
  const auto has = [](const unsigned* bits, int d) { return (bits[d / kWarp] >> d % kWarp & 1U) != 0; };
  for (int i = static_cast<int>(threadIdx.x); i < a.destinations + words; i += kPoolThreads) rows[i] = 0;
  __syncthreads();
  for (int e = static_cast<int>(threadIdx.x); e < a.experts; e += kPoolThreads) set(used, e);
  __syncthreads();
  unsigned sum = 0;
  for (std::int64_t document = warp_of_grid(); document < a.documents; document += warps_of_grid()) {
    for (int w = lane; w < words; w += kWarp) reached[w] = 0;
    __syncwarp();
    const std::uint8_t* const mask = a.pool == nullptr ? nullptr : a.pool + document * a.experts;
    for (int e = lane; e < a.experts; e += kWarp)
      if (mask == nullptr || mask[e] != 0) set(reached, e);
    __syncwarp();
    const auto tokens = static_cast<unsigned>(a.segments[document + 1] - a.segments[document]);
    const unsigned freed = a.freed != nullptr ? a.freed[document] : 0;
    for (int d = lane; d < a.destinations; d += kWarp) {
      const bool there = has(reached, d);
      const unsigned more = there ? tokens : has(used, d) ? freed : 0;
      sum += there ? 1 : 0;
      if (more != 0) atomicAdd(&rows[d], more);
    }
    __syncwarp();
  }
  sum = over_warp(sum, Plus());
  if (lane == 0 && sum != 0) atomicAdd(a.reached, static_cast<unsigned long long>(sum));
  __syncthreads();
  for (int d = static_cast<int>(threadIdx.x); d < a.destinations; d += kPoolThreads)
    if (rows[d] != 0) atomicAdd(&a.limit[d], static_cast<unsigned long long>(rows[d]));
}

}  // namespace

void document_scores(Context& ctx, TensorView scores, TensorView p, TensorView segments) {
  Queue& q = queue_of(ctx);
  ScoreArguments a{};
  a.tokens = p.dim(0), a.width = p.dim(1), a.n = scores.dim(1);
  a.documents = static_cast<int>(scores.dim(0));
  a.tiles = static_cast<int>((a.n + kScoreColumns - 1) / kScoreColumns);
  if (a.n == 0 || a.documents == 0) return;
  a.scores = scores.data<float>(), a.p = p.data<float>(), a.segments = segments.data<std::int32_t>();
  const std::int64_t windows = (a.tokens + kWindowTokens - 1) / kWindowTokens;
  std::tie(a.partial) = scratch_arrays<double>(q, 2 * windows * a.n);
  launch(q, Op::document_scores, document_scores_kernel, {blocks_of(windows * a.tiles, 1), kScoreColumns}, a);
  launch(q, Op::document_scores, document_scores_of_windows_kernel,
         {blocks_of(std::int64_t{a.documents} * a.tiles, 1), kScoreColumns}, a);
}

void document_pools(Context& ctx, TensorView pool, TensorView scores, TensorView sizes) {
  Queue& q = queue_of(ctx);
  const std::int64_t documents = pool.dim(0), n = pool.dim(1);
  if (documents == 0 || n == 0) return;
  by_columns(n, [&](auto slots) {
    launch(q, Op::document_pools, document_pools_kernel<decltype(slots)::value>,
           {blocks_of(documents * kWarp, kPoolThreads), kPoolThreads}, pool.data<std::uint8_t>(), scores.data<float>(),
           sizes.data<std::int32_t>(), documents, n);
  });
}

void pool_reach(Context& ctx, TensorView limit, TensorView reached, TensorView pool, TensorView segments,
                TensorView destination, TensorView free_tokens) {
  Queue& q = queue_of(ctx);
  ReachArguments a{};
  a.limit = reinterpret_cast<unsigned long long*>(limit.data<std::int64_t>());
  a.reached = reinterpret_cast<unsigned long long*>(reached.data<std::int64_t>());
  a.segments = segments.data<std::int32_t>(), a.destination = destination.data<std::int32_t>();
  a.documents = static_cast<int>(segments.numel() - 1), a.experts = static_cast<int>(destination.numel());
  a.destinations = static_cast<int>(limit.numel());
  a.fault = q.fault_word(ctx);
  if (!pool.null()) a.pool = pool.data<std::uint8_t>();
  // Without pools every token goes everywhere: free ones are no exception.
  if (!pool.null() && !free_tokens.null()) {
    a.free_tokens = free_tokens.data<std::uint8_t>(), a.tokens = free_tokens.numel();
    std::tie(a.freed) = scratch_arrays<unsigned>(q, a.documents);
  }
  const std::int64_t words = (a.destinations + kWarp - 1) / kWarp;
  const std::size_t shared = idx(a.destinations + words * (1 + kPoolThreads / kWarp)) * sizeof(unsigned);
  require<ShapeError>(shared <= 96 * 1024, "[pool_reach] {} destinations, the device counts fewer", a.destinations);
  const int cleared = a.freed != nullptr && a.documents > a.destinations ? a.documents : a.destinations;
  launch(q, Op::pool_reach, pool_reach_clear_kernel, {blocks_of(cleared + 1, kPoolThreads), kPoolThreads}, a);
  if (a.documents <= 0) return;
  if (a.freed != nullptr)
    launch(q, Op::pool_reach, pool_reach_free_kernel, {blocks_of(a.tokens, kPoolThreads), kPoolThreads}, a);
  const std::int64_t most = 2048 / kPoolThreads * q.processors(), wanted = (a.documents + 7) / 8;
  launch(q, Op::pool_reach, pool_reach_kernel,
         {dim3(static_cast<unsigned>(wanted < most ? wanted : most)), kPoolThreads, shared}, a);
}

}  // namespace emox::cuda
