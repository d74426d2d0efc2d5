// The embedding's gradient: rows of dy added to the rows of the table that their tokens name, in a fixed order and
// without atomics, however often a token comes.
//
// 1. The tokens' numbers are sorted by id, stably: a radix sort, eight bits a pass. Each pass counts digits tile by
//    tile, adds the counts up in the order (digit, tile), and moves each token to its place: that of its tile and
//    digit, and behind it those of the same digit before it in the tile, which ballots find.
// 2. The sorted tokens are cut into stretches of kStretch, a block each and a piece of columns a thread. A run of equal
//    ids inside a stretch goes straight to the table. What crosses a boundary is left as a partial row.
// 3. For each run that crosses a boundary the block of the stretch where it starts adds its partial rows in order.
#include "runtime/cuda/block_scan.h"
#include "runtime/cuda/kernels.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/pieces.h"
#include "runtime/cuda/scratch_arrays.h"

namespace emox::cuda {
namespace {

constexpr int kDigitBits = 8, kDigits = 1 << kDigitBits;
constexpr int kSortTile = 1024, kSortWarps = kSortTile / kWarp;  // tokens of a tile, one a thread
constexpr int kStretch = 64, kSumThreads = 256;

/// Tokens in order of their ids.
struct Sorted {
  std::int32_t *ids, *tokens;
};

struct CountShared {
  int counts[kDigits];
};

// counts[digit, tile]
__global__ void __launch_bounds__(kSortTile)
    embedding_count_kernel(std::int32_t* counts, const std::int32_t* ids, std::int64_t tokens, int shift) {
  CountShared& s = shared_memory<CountShared>();
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kDigits) s.counts[thread] = 0;
  __syncthreads();
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kSortTile + thread;
  if (at < tokens) atomicAdd(&s.counts[ids[at] >> shift & (kDigits - 1)], 1);
  __syncthreads();
  if (thread < kDigits) counts[static_cast<std::int64_t>(thread) * gridDim.x + blockIdx.x] = s.counts[thread];
}

struct ScanShared {
  int slots[kWarp];
};

// Counts -> the sums of those before, in place: one block, since there are few (256 for every 1024 tokens).
__global__ void __launch_bounds__(kSortTile) embedding_scan_kernel(std::int32_t* counts, std::int64_t n) {
  ScanShared& s = shared_memory<ScanShared>();
  int before = 0;
  for (std::int64_t from = 0; from < n; from += kSortTile) {
    const std::int64_t at = from + threadIdx.x;
    const BlockSum sum = sum_before_thread(at < n ? counts[at] : 0, s.slots);
    if (at < n) counts[at] = before + sum.before;
    before += sum.all;
  }
}

struct PlaceShared {
  int before[kSortWarps][kDigits];  // first the warp's count of the digit, then the count in the warps before it
};

// Null token_numbers: they are the places, 0, 1, 2 ...
__global__ void __launch_bounds__(kSortTile)
    embedding_place_kernel(Sorted to, const std::int32_t* ids, const std::int32_t* token_numbers,
                           const std::int32_t* starts, std::int64_t tokens, int shift) {
  PlaceShared& s = shared_memory<PlaceShared>();
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  for (int digit = lane; digit < kDigits; digit += kWarp) s.before[warp][digit] = 0;
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kSortTile + thread;
  const bool valid = at < tokens;
  const int id = valid ? ids[at] : 0, digit = id >> shift & (kDigits - 1);
  unsigned same = __ballot_sync(kAllLanes, valid);  // lanes of the same digit
  for (int bit = 0; bit < kDigitBits; ++bit) {
    const bool set = (digit >> bit & 1) != 0;
    const unsigned lanes = __ballot_sync(kAllLanes, set);
    same &= set ? lanes : ~lanes;
  }
  const int rank = __popc(same & ((1U << lane) - 1U));
  __syncwarp();
  if (valid && rank == 0) s.before[warp][digit] = __popc(same);
  __syncthreads();
  if (thread < kDigits) {
    int sum = 0;
    for (int w = 0; w < kSortWarps; ++w) {
      const int count = s.before[w][thread];
      s.before[w][thread] = sum;
      sum += count;
    }
  }
  __syncthreads();
  if (!valid) return;
  const int place = starts[static_cast<std::int64_t>(digit) * gridDim.x + blockIdx.x] + s.before[warp][digit] + rank;
  to.ids[place] = id;
  to.tokens[place] = token_numbers != nullptr ? token_numbers[at] : static_cast<std::int32_t>(at);
}

// Partial rows of a stretch: of the run that began before it, and of the one that goes on behind it.
enum Part { kHead, kTail, kParts };

struct StretchShared {
  int ids[kStretch + 2];  // of the token before the stretch, of its tokens, and of the one behind it; -1: there is none
  int tokens[kStretch];
};

template <typename T, int piece>
__global__ void __launch_bounds__(kSumThreads)
    embedding_sum_kernel(float* dtable, float* partial, Sorted sorted, const T* dy, std::int64_t tokens,
                         std::int64_t width, int slabs) {
  StretchShared& s = shared_memory<StretchShared>();
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t stretch = blockIdx.x / slabs, begin = stretch * kStretch;
  const int count = static_cast<int>(tokens - begin < kStretch ? tokens - begin : kStretch);
  if (thread < kStretch + 2) {
    const std::int64_t at = begin + thread - 1;
    s.ids[thread] = at >= 0 && at < tokens ? sorted.ids[at] : -1;
  }
  if (thread < count) s.tokens[thread] = sorted.tokens[begin + thread];
  __syncthreads();
  const std::int64_t column = (static_cast<std::int64_t>(blockIdx.x % slabs) * kSumThreads + thread) * piece;
  if (column >= width) return;
  float sum[piece] = {};
  bool head = s.ids[0] == s.ids[1];
  constexpr int kAhead = 4;  // rows on their way at once
  for (int from = 0; from < count; from += kAhead) {
    float x[kAhead][piece];
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (from + i < count) load_piece(x[i], dy + s.tokens[from + i] * width + column);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int at = from + i;
      if (at >= count) break;
#pragma unroll
      for (int j = 0; j < piece; ++j) sum[j] += x[i][j];
      const int id = s.ids[at + 1];
      const bool last = at + 1 == count, goes_on = s.ids[at + 2] == id;
      if (goes_on && !last) continue;
      if (head || goes_on)
        store_floats(partial + (stretch * kParts + (head ? kHead : kTail)) * width + column, sum);
      else
        add_floats(dtable + id * width + column, sum);
      head = false;
#pragma unroll
      for (int j = 0; j < piece; ++j) sum[j] = 0.0F;
    }
  }
}

// Adds up the run that crosses the end of a stretch, if it starts there.
__global__ void __launch_bounds__(kSumThreads)
    embedding_join_kernel(float* dtable, const float* partial, const std::int32_t* ids, std::int64_t tokens,
                          std::int64_t width, int slabs) {
  const std::int64_t stretch = blockIdx.x / slabs, begin = stretch * kStretch, next = begin + kStretch;
  if (next >= tokens) return;
  const int id = ids[next];
  if (ids[next - 1] != id || (begin > 0 && ids[begin - 1] == id)) return;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x % slabs) * kSumThreads + threadIdx.x;
  if (column >= width) return;
  float sum = partial[(stretch * kParts + kTail) * width + column];
  // The stretches that begin inside the run: ids ascend, so a search finds the last.
  std::int64_t low = stretch + 1, high = (tokens - 1) / kStretch;
  while (low < high) {
    const std::int64_t middle = (low + high + 1) / 2;
    if (ids[middle * kStretch] == id)
      low = middle;
    else
      high = middle - 1;
  }
#pragma unroll 8
  for (std::int64_t i = stretch + 1; i <= low; ++i) sum += partial[(i * kParts + kHead) * width + column];
  dtable[id * width + column] += sum;
}

}  // namespace

void embedding_backward(Context& ctx, TensorView dtable, TensorView ids, TensorView dy) {
  const std::int64_t tokens = ids.numel(), vocab = dtable.dim(0), width = dtable.dim(1);
  if (tokens == 0 || width == 0) return;
  constexpr auto op = ops::Op::embedding_backward;
  Queue& q = queue_of(ctx);
  const std::int64_t tiles = (tokens + kSortTile - 1) / kSortTile, counted = kDigits * tiles;
  const std::int64_t stretches = (tokens + kStretch - 1) / kStretch;
  const auto [to_ids, to_tokens, other_ids, other_tokens, counts, partial_rows] =
      scratch_arrays<std::int32_t, std::int32_t, std::int32_t, std::int32_t, std::int32_t, float>(
          q, tokens, tokens, tokens, tokens, counted, stretches * kParts * width);
  Sorted to{to_ids, to_tokens}, other{other_ids, other_tokens};
  float* const partial = partial_rows;

  const std::int32_t *from_ids = ids.data<std::int32_t>(), *from_tokens = nullptr;
  Sorted sorted = to;
  for (int shift = 0; shift == 0 || (vocab - 1) >> shift > 0; shift += kDigitBits) {
    const dim3 blocks = blocks_of(tokens, kSortTile);
    launch(q, op, embedding_count_kernel, {blocks, kSortTile, sizeof(CountShared)}, counts, from_ids, tokens, shift);
    launch(q, op, embedding_scan_kernel, {1, kSortTile, sizeof(ScanShared)}, counts, counted);
    launch(q, op, embedding_place_kernel, {blocks, kSortTile, sizeof(PlaceShared)}, to, from_ids, from_tokens, counts,
           tokens, shift);
    sorted = to;
    from_ids = to.ids, from_tokens = to.tokens;
    to = other, other = sorted;
  }
  by_type(ctx.activations, [&](auto zero) {
    using T = decltype(zero);
    const bool wide = in_pieces<T>(width, {dy.raw(), dtable.raw()});
    const int columns = kSumThreads * (wide ? kPiece<T> : 1);
    const int slabs = static_cast<int>((width + columns - 1) / columns);
    launch(q, op, wide ? embedding_sum_kernel<T, kPiece<T>> : embedding_sum_kernel<T, 1>,
           {blocks_of(stretches * slabs, 1), kSumThreads, sizeof(StretchShared)}, dtable.data<float>(), partial, sorted,
           dy.data<T>(), tokens, width, slabs);
  });
  const int slabs = static_cast<int>((width + kSumThreads - 1) / kSumThreads);
  launch(q, op, embedding_join_kernel, {blocks_of(stretches * slabs, 1), kSumThreads}, dtable.data<float>(), partial,
         sorted.ids, tokens, width, slabs);
}

}  // namespace emox::cuda
