// Counts of picks and sums of probabilities for the losses and reports.
//
// A block has at least kStatisticsTokens tokens and a tile of columns: f64 sums by column, picks counted in shared
// memory, written as partial results, at most kStatisticsWindows of them whatever the tokens, which a second kernel
// adds in fixed order. Experts of a document are bits in scratch: a warp gathers those of 32 tokens of one document
// before it sets them.
#include <climits>

#include "runtime/cuda/documents.h"
#include "runtime/cuda/kernels.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/scratch_arrays.h"

namespace emox::cuda {
namespace {

using ops::Op;
using ops::TopkResult;

constexpr int kStatisticsColumns = 128, kStatisticsTokens = 32, kStatisticsWindows = 512;
constexpr int kSumRows = 16, kBitThreads = 256;

struct StatisticsArguments {
  unsigned long long* counts;
  double *p_sum, *z_sum;
  double* sums;  ///< [windows, n + 1]: of p, and of lse^2
  int* picks;    ///< [windows, n]
  const float *p, *lse;
  const std::int32_t* ids;
  std::int64_t tokens, width, window_tokens;
  int n, k, windows, tiles;
  double* fault;
};

struct StatisticsShared {
  int picks[kStatisticsColumns];
  double slots[kWarp + 1];
};

__global__ void __launch_bounds__(kStatisticsColumns) router_statistics_kernel(StatisticsArguments a) {
  StatisticsShared& s = shared_memory<StatisticsShared>();
  const int thread = static_cast<int>(threadIdx.x), tile = static_cast<int>(blockIdx.x) % a.tiles;
  const std::int64_t window = blockIdx.x / a.tiles, begin = window * a.window_tokens;
  const std::int64_t end = begin + a.window_tokens < a.tokens ? begin + a.window_tokens : a.tokens;
  const int low = tile * kStatisticsColumns, column = low + thread;
  s.picks[thread] = 0;
  __syncthreads();
  for (std::int64_t i = begin * a.k + thread; i < end * a.k; i += kStatisticsColumns) {
    const int id = a.ids[i];
    if (id < 0 || id >= a.n)
      report_fault(a.fault, Op::router_statistics, 4, i);
    else if (id >= low && id < low + kStatisticsColumns)
      atomicAdd(&s.picks[id - low], 1);
  }
  double sum = 0;
  if (column < a.n) {
#pragma unroll 8
    for (std::int64_t t = begin; t < end; ++t) sum += static_cast<double>(a.p[t * a.width + column]);
    a.sums[window * (a.n + 1) + column] = sum;
  }
  __syncthreads();
  if (column < a.n) a.picks[window * a.n + column] = s.picks[thread];
  if (tile != 0) return;
  double squares = 0;
  for (std::int64_t t = begin + thread; t < end; t += kStatisticsColumns)
    squares += static_cast<double>(a.lse[t]) * static_cast<double>(a.lse[t]);
  squares = over_block(squares, s.slots, Plus());
  if (thread == 0) a.sums[window * (a.n + 1) + a.n] = squares;
}

struct StatisticsSumShared {
  double sums[kSumRows][kWarp];
  int picks[kSumRows][kWarp];
};

// 32 columns a block, the windows dealt out to kSumRows warps.
__global__ void __launch_bounds__(kSumRows* kWarp) router_statistics_sum_kernel(StatisticsArguments a) {
  StatisticsSumShared& s = shared_memory<StatisticsSumShared>();
  const int lane = static_cast<int>(threadIdx.x) % kWarp, row = static_cast<int>(threadIdx.x) / kWarp;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kWarp + lane;
  double sum = 0;
  int picks = 0;
  if (column <= a.n) {
#pragma unroll 8
    for (std::int64_t w = row; w < a.windows; w += kSumRows) sum += a.sums[w * (a.n + 1) + column];
  }
  if (column < a.n) {
#pragma unroll 8
    for (std::int64_t w = row; w < a.windows; w += kSumRows) picks += a.picks[w * a.n + column];
  }
  s.sums[row][lane] = sum;
  s.picks[row][lane] = picks;
  __syncthreads();
  if (row != 0 || column > a.n) return;
  for (int r = 1; r < kSumRows; ++r) sum += s.sums[r][lane], picks += s.picks[r][lane];
  if (column == a.n) {
    *a.z_sum += sum;
  } else {
    a.p_sum[column] += sum;
    a.counts[column] += static_cast<unsigned long long>(picks);
  }
}

struct DocumentExpertsArguments {
  unsigned long long* sum;
  unsigned* bits;  ///< [documents, words]
  const std::int32_t *ids, *segments;
  std::int64_t tokens, elements;  ///< elements: of bits
  int documents, words, k, experts;
  double* fault;
};

__global__ void __launch_bounds__(kBitThreads) document_experts_clear_kernel(DocumentExpertsArguments a) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kBitThreads + threadIdx.x;
  if (i < a.elements) a.bits[i] = 0;
}

// A thread a token.
__global__ void __launch_bounds__(kBitThreads) document_experts_set_kernel(DocumentExpertsArguments a) {
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * kBitThreads + threadIdx.x, first = t - t % kWarp;
  if (first >= a.tokens) return;
  const std::int64_t last = first + kWarp < a.tokens ? first + kWarp - 1 : a.tokens - 1;
  const int document = document_of(a.segments, a.documents, t < last ? t : last);
  const bool same = __shfl_sync(kAllLanes, document, 0) == __shfl_sync(kAllLanes, document, kWarp - 1);
  unsigned* const bits = a.bits + static_cast<std::int64_t>(document) * a.words;
  const std::int32_t* const ids = a.ids + t * a.k;
  const int picks = t < a.tokens ? a.k : 0;
  const auto fits = [&](int id) { return id >= 0 && id < a.experts; };
  for (int j = 0; j < picks; ++j) {
    if (!fits(ids[j]))
      report_fault(a.fault, Op::document_experts, 2, t * a.k + j);
    else if (!same)
      atomicOr(&bits[ids[j] / kWarp], 1U << ids[j] % kWarp);
  }
  if (!same) return;
  for (int word = 0; word < a.words; ++word) {
    unsigned own = 0;
    for (int j = 0; j < picks; ++j)
      if (fits(ids[j]) && ids[j] / kWarp == word) own |= 1U << ids[j] % kWarp;
    own = __reduce_or_sync(kAllLanes, own);
    if (own != 0 && t == first) atomicOr(&bits[word], own);
  }
}

__global__ void __launch_bounds__(kBitThreads) document_experts_count_kernel(DocumentExpertsArguments a) {
  int* const slots = &shared_memory<int>();
  int count = 0;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kBitThreads + threadIdx.x; i < a.elements;
       i += static_cast<std::int64_t>(gridDim.x) * kBitThreads)
    count += __popc(a.bits[i]);
  count = over_block(count, slots, Plus());
  if (threadIdx.x == 0 && count != 0) atomicAdd(a.sum, static_cast<unsigned long long>(count));
}

}  // namespace

void router_statistics(Context& ctx, TensorView counts, TensorView p_sum, TensorView z_sum, const TopkResult& fwd) {
  Queue& q = queue_of(ctx);
  StatisticsArguments a{};
  a.tokens = fwd.p.dim(0), a.width = fwd.p.dim(1);
  if (a.tokens == 0) return;
  a.n = static_cast<int>(fwd.experts()), a.k = static_cast<int>(fwd.ids.dim(1));
  a.counts = reinterpret_cast<unsigned long long*>(counts.data<std::int64_t>());
  a.p_sum = p_sum.data<double>(), a.z_sum = z_sum.data<double>();
  a.p = fwd.p.data<float>(), a.lse = fwd.lse.data<float>(), a.ids = fwd.ids.data<std::int32_t>();
  a.fault = q.fault_word(ctx);
  const std::int64_t wanted = (a.tokens + kStatisticsWindows - 1) / kStatisticsWindows;
  a.window_tokens = wanted > kStatisticsTokens ? wanted : kStatisticsTokens;
  a.windows = static_cast<int>((a.tokens + a.window_tokens - 1) / a.window_tokens);
  a.tiles = a.n == 0 ? 1 : (a.n + kStatisticsColumns - 1) / kStatisticsColumns;
  std::tie(a.sums, a.picks) =
      scratch_arrays<double, int>(q, std::int64_t{a.windows} * (a.n + 1), std::int64_t{a.windows} * a.n);
  launch(q, Op::router_statistics, router_statistics_kernel,
         {blocks_of(std::int64_t{a.windows} * a.tiles, 1), kStatisticsColumns, sizeof(StatisticsShared)}, a);
  launch(q, Op::router_statistics, router_statistics_sum_kernel,
         {blocks_of(a.n + 1, kWarp), kSumRows * kWarp, sizeof(StatisticsSumShared)}, a);
}

void document_experts(Context& ctx, TensorView sum, TensorView ids, TensorView segments, std::int64_t experts) {
  Queue& q = queue_of(ctx);
  DocumentExpertsArguments a{};
  a.tokens = ids.dim(0), a.k = static_cast<int>(ids.dim(1));
  a.documents = static_cast<int>(segments.numel() - 1), a.experts = static_cast<int>(experts);
  if (a.documents <= 0 || a.tokens == 0) return;
  a.words = (a.experts + kWarp - 1) / kWarp;
  a.elements = std::int64_t{a.documents} * a.words;
  a.sum = reinterpret_cast<unsigned long long*>(sum.data<std::int64_t>());
  a.ids = ids.data<std::int32_t>(), a.segments = segments.data<std::int32_t>();
  a.fault = q.fault_word(ctx);
  std::tie(a.bits) = scratch_arrays<unsigned>(q, a.elements);
  launch(q, Op::document_experts, document_experts_clear_kernel, {blocks_of(a.elements, kBitThreads), kBitThreads}, a);
  launch(q, Op::document_experts, document_experts_set_kernel, {blocks_of(a.tokens, kBitThreads), kBitThreads}, a);
  const dim3 all = blocks_of(a.elements, kBitThreads);
  launch(q, Op::document_experts, document_experts_count_kernel,
         {dim3(all.x < 256 ? all.x : 256), kBitThreads, (kWarp + 1) * sizeof(int)}, a);
}

}  // namespace emox::cuda
