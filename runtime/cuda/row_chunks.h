// Rows with picks, dealt out to warps: what the stable counting sorts of dispatch_plan.cu are made of.
//
// A chunk is a run of rows for one warp. A sort is three kernels: each warp counts the keys of its chunk's picks, a
// block for each key sums the counts over the chunks before each, and each warp gives its picks their places in order.
// Both passes of a warp take 32 picks at a time, row after row, so a place needs no more than the lanes before with the
// same key. There are at most kMostChunks chunks, so the counts stay small.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/cuda/block_scan.h"
#include "runtime/cuda/device.h"
#include "runtime/cuda/queue.h"
#include "runtime/ops/dispatch_plan.h"
#include "runtime/ops/op_list.h"

namespace emox::cuda {

inline constexpr int kChunkWarps = 8, kChunkThreads = kChunkWarps * kWarp, kMostChunks = 1024, kLeastChunkRows = 4;

struct RowChunks {
  const std::int32_t *experts, *first;  ///< RowPicks
  int rows, picks;
  int rows_of_chunk, chunks;  ///< chunks: a multiple of kChunkWarps
  /// Which rows take turn after row own_turn - 1: the last own_rows. Both 0: the rows as they lie.
  int own_turn, own_rows;
  ops::Op op;
  double* fault;

  unsigned blocks() const { return static_cast<unsigned>(chunks / kChunkWarps); }
  /// The row whose turn is number i.
  __device__ int row_of_turn(int i) const {
    if (i < own_turn) return i;
    return i < own_turn + own_rows ? rows - own_rows + i - own_turn : i - own_rows;
  }
};

inline RowChunks row_chunks(const ops::RowPicks& in, ops::Op op, double* fault) {
  const std::int64_t rows = in.rows();
  RowChunks c{};
  c.experts = in.experts.data<std::int32_t>(), c.first = in.first.data<std::int32_t>();
  c.rows = static_cast<int>(rows), c.picks = static_cast<int>(in.picks());
  c.op = op, c.fault = fault;
  const std::int64_t wanted = (rows + kMostChunks - 1) / kMostChunks;
  c.rows_of_chunk = static_cast<int>(wanted > kLeastChunkRows ? wanted : kLeastChunkRows);
  const std::int64_t chunks = (rows + c.rows_of_chunk - 1) / c.rows_of_chunk;
  c.chunks = static_cast<int>(chunks == 0 ? kChunkWarps : (chunks + kChunkWarps - 1) / kChunkWarps * kChunkWarps);
  return c;
}

/// What a warp knows of the 32 rows at hand.
struct WarpRows {
  int row[kWarp], begin[kWarp], before[kWarp];  ///< before: picks of the rows before among the 32
};

/// A pick of a row; not there: pick -1, for lanes beyond the last one.
struct PickOfRow {
  int row, begin, pick;
};

/// For the warp's chunk, 32 rows at a time: with_rows(turn, rows) once, then f(PickOfRow) by all lanes for 32 picks at
/// a time in the order of turns. `first` may be wrong, where it came over the network: such a row has no picks, and is
/// reported as the element of operand 2.
template <typename WithRows, typename F>
__device__ __forceinline__ void for_picks_of_chunk(const RowChunks& c, WarpRows& s, WithRows&& with_rows, F&& f) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t chunk = static_cast<std::int64_t>(blockIdx.x) * kChunkWarps + threadIdx.x / kWarp;
  const std::int64_t chunk_begin = chunk * c.rows_of_chunk, chunk_end = chunk_begin + c.rows_of_chunk;
  const int end = static_cast<int>(chunk_end < c.rows ? chunk_end : c.rows);
  for (int turn = static_cast<int>(chunk_begin < c.rows ? chunk_begin : c.rows); turn < end; turn += kWarp) {
    const int rows = end - turn < kWarp ? end - turn : kWarp;
    int row = 0, begin = 0, picks = 0;
    if (lane < rows) {
      row = c.row_of_turn(turn + lane);
      begin = c.first[row];
      const int stop = c.first[row + 1];
      if (begin < 0 || stop < begin || stop > c.picks)
        report_fault(c.fault, c.op, 2, row);
      else
        picks = stop - begin;
    }
    with_rows(turn, rows, row, picks);
    const int to_lane = sum_to_lane(picks), all = __shfl_sync(kAllLanes, to_lane, kWarp - 1);
    __syncwarp();  // the rows before are done
    s.row[lane] = row, s.begin[lane] = begin, s.before[lane] = to_lane - picks;
    __syncwarp();
    for (int base = 0; base < all; base += kWarp) {
      PickOfRow p{0, 0, -1};
      if (const int at = base + lane; at < all) {
        int low = 0;  // the last row that begins at `at` or before
        for (int step = kWarp / 2; step > 0; step /= 2)
          if (s.before[low + step] <= at) low += step;
        p = {s.row[low], s.begin[low], s.begin[low] + at - s.before[low]};
      }
      f(p);
    }
  }
}

inline constexpr std::size_t kMostPlanShared = 200 * 1024;

/// A block's shared memory: what its warps know of their rows, then room for sums, then integers for `keys` keys.
struct PlanShared {
  WarpRows rows[kChunkWarps];
  int slots[kWarp];
};
inline std::size_t plan_shared(ops::Op op, std::int64_t keys, int arrays) {
  const std::size_t bytes = sizeof(PlanShared) + idx(keys * arrays) * sizeof(int);
  require<ShapeError>(bytes <= kMostPlanShared, "[{}] the device sorts by fewer than {} keys", ops::name_of(op), keys);
  return bytes;
}
__device__ inline int* plan_integers(PlanShared& s) { return reinterpret_cast<int*>(&s + 1); }

/// Counts of the block's warps [kChunkWarps, keys] -> their place in counts [keys, chunks]. And back.
__device__ inline void store_counts(int* counts, const int* of_warps, int keys, int chunks) {
  for (int i = static_cast<int>(threadIdx.x); i < keys * kChunkWarps; i += kChunkThreads) {
    const int key = i / kChunkWarps, warp = i % kChunkWarps;
    counts[static_cast<std::int64_t>(key) * chunks + blockIdx.x * kChunkWarps + warp] = of_warps[warp * keys + key];
  }
}
__device__ inline void load_places(int* of_warps, const int* base, const int* counts, int keys, int chunks) {
  for (int i = static_cast<int>(threadIdx.x); i < keys * kChunkWarps; i += kChunkThreads) {
    const int key = i / kChunkWarps, warp = i % kChunkWarps;
    of_warps[warp * keys + key] =
        base[key] + counts[static_cast<std::int64_t>(key) * chunks + blockIdx.x * kChunkWarps + warp];
  }
}
__device__ inline unsigned lanes_before() { return (1U << threadIdx.x % kWarp) - 1; }

/// counts [keys, chunks] -> the sums over the chunks before, totals [keys] over all. In dispatch_plan.cu.
void sum_over_chunks(Queue& q, ops::Op op, int* counts, std::int64_t* totals, std::int64_t keys, int chunks);

}  // namespace emox::cuda
