// One 128x128 tile of a bf16 product on tensor cores, sums in f32. Four warps, each with 64x64 of the tile: less would
// read shared memory for longer than the tensor cores compute. K goes in order, 32 at a time, in a ring of four stages
// that cp.async fills meanwhile.
//
// An operand lies in one of two ways: its lines (rows of C for A, columns of C for B) along K, or across it. A stage is
// then [128 lines][32 of K] or [32 of K][128 lines], in pieces of 16 bytes whose places are permuted such that both the
// copies and ldmatrix meet every bank once; ldmatrix transposes what lies across.
#pragma once

#include <cstdint>

#include "runtime/cuda/device.h"

namespace emox::cuda {

inline constexpr int kMmaTile = 128, kMmaStep = 32, kMmaStages = 4, kMmaThreads = 128;

struct MmaShared {
  alignas(128) std::uint16_t a[kMmaStages][kMmaTile * kMmaStep];
  alignas(128) std::uint16_t b[kMmaStages][kMmaTile * kMmaStep];
};

/// Where piece `piece` of a row of the stage lies.
template <bool kAlong>
__device__ __forceinline__ int mma_place(int row, int piece) {
  if constexpr (kAlong) return row * kMmaStep + 8 * (piece ^ (row >> 1 & 3));
  return row * kMmaTile + 8 * (piece ^ (row & 7));
}

/// Brings one operand's part of the tile, a step of K after the other. kVector: 16 bytes at a time, which addresses,
/// strides and extents must allow. Beyond `lines` and `depth` there are zeros.
template <bool kAlong, bool kVector>
class MmaLoader {
 public:
  /// at: line 0 at k = 0; stride: from a row of memory to the next (lines along K, steps of K across it).
  __device__ MmaLoader(const Bf16* at, std::int64_t stride, std::int64_t lines, std::int64_t depth)
      : stride_(stride), depth_(depth), lines_(lines < kMmaTile ? static_cast<int>(lines) : kMmaTile) {
    at_ = at + row() * stride + 8 * piece();
  }

  __device__ __forceinline__ void load(std::uint16_t* stage) {
#pragma unroll
    for (int pass = 0; pass < (kAlong ? kMmaTile : kMmaStep) / kRows; ++pass) {
      const int r = row() + pass * kRows;
      const Bf16* from = at_ + pass * kRows * stride_;
      std::uint16_t* to = stage + mma_place<kAlong>(r, piece());
      // Of this row: whether it exists, and how many of its elements from this piece on.
      const bool valid = kAlong ? r < lines_ : r < depth_;
      const std::int64_t left = (kAlong ? depth_ : lines_) - 8 * piece();
      if constexpr (kVector)
        copy_async_16(to, from, valid && left > 0);
      else
        copy_elements(to, from, valid ? left : 0);
    }
    at_ += kAlong ? kMmaStep : kMmaStep * stride_;
    depth_ -= kMmaStep;
  }

 private:
  static constexpr int kPieces = kAlong ? kMmaStep / 8 : kMmaTile / 8, kRows = kMmaThreads / kPieces;
  __device__ static int row() { return static_cast<int>(threadIdx.x) / kPieces; }
  __device__ static int piece() { return static_cast<int>(threadIdx.x) % kPieces; }

  __device__ static void copy_elements(std::uint16_t* to, const Bf16* from, std::int64_t count) {
    std::uint32_t pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t low = 2 * i < count ? from[2 * i].bits() : 0U;
      const std::uint32_t high = 2 * i + 1 < count ? from[2 * i + 1].bits() : 0U;
      pairs[i] = high << 16 | low;
    }
    *reinterpret_cast<uint4*>(to) = uint4{pairs[0], pairs[1], pairs[2], pairs[3]};
  }

  const Bf16* at_;
  std::int64_t stride_, depth_;  // depth: of K from here on
  int lines_;
};

/// sum[i][j]: the m16n8 parts at rows 16 i, columns 8 j of this warp's 64x64, as mma_m16n8k16 lays them out.
using MmaSum = float[4][8][4];

__device__ inline int mma_warp_row() { return static_cast<int>(threadIdx.x) / kWarp / 2 * 64; }
__device__ inline int mma_warp_column() { return static_cast<int>(threadIdx.x) / kWarp % 2 * 64; }

namespace detail {

/// Rows [row, row + 16) of A, K [16 kk, 16 kk + 16).
template <bool kAlong>
__device__ __forceinline__ void load_a(std::uint32_t (&f)[4], const std::uint16_t* stage, int row, int kk) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if constexpr (kAlong)
    load_matrices_x4(f, stage + mma_place<true>(row + lane % 16, 2 * kk + lane / 16));
  else
    load_matrices_x4_transposed(f,
                                stage + mma_place<false>(16 * kk + lane % 8 + lane / 16 * 8, row / 8 + lane / 8 % 2));
}

/// Columns [column, column + 16) of B: two fragments.
template <bool kAlong>
__device__ __forceinline__ void load_b(std::uint32_t (&f)[4], const std::uint16_t* stage, int column, int kk) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if constexpr (kAlong)
    load_matrices_x4(f, stage + mma_place<true>(column + lane % 8 + lane / 16 * 8, 2 * kk + lane / 8 % 2));
  else
    load_matrices_x4_transposed(
        f, stage + mma_place<false>(16 * kk + lane % 8 + lane / 8 % 2 * 8, column / 8 + lane / 16));
}

}  // namespace detail

/// The whole tile over `depth` elements of K; the loaders stand at k = 0.
template <bool kAlongA, bool kAlongB, bool kVector>
__device__ __forceinline__ void mma_tile(MmaShared& s, MmaSum& sum, MmaLoader<kAlongA, kVector> a,
                                         MmaLoader<kAlongB, kVector> b, std::int64_t depth) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int x = 0; x < 4; ++x) sum[i][j][x] = 0.0F;
  const int steps = static_cast<int>((depth + kMmaStep - 1) / kMmaStep);
  const int row = mma_warp_row(), column = mma_warp_column();
  const auto load = [&](int step) {
    if (step < steps) {
      a.load(s.a[step % kMmaStages]);
      b.load(s.b[step % kMmaStages]);
    }
    copy_async_commit();  // a group a step, even without copies: the waits below count groups
  };
  for (int step = 0; step < kMmaStages - 1; ++step) load(step);
  for (int step = 0; step < steps; ++step) {
    copy_async_wait<kMmaStages - 2>();
    __syncthreads();  // the step's stage is complete, and the stage of the step before is used up
    load(step + kMmaStages - 1);
    const std::uint16_t *stage_a = s.a[step % kMmaStages], *stage_b = s.b[step % kMmaStages];
#pragma unroll
    for (int kk = 0; kk < kMmaStep / 16; ++kk) {
      std::uint32_t fa[4][4], fb[8][2];
#pragma unroll
      for (int i = 0; i < 4; ++i) detail::load_a<kAlongA>(fa[i], stage_a, row + 16 * i, kk);
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        std::uint32_t f[4];
        detail::load_b<kAlongB>(f, stage_b, column + 8 * j, kk);
        fb[j][0] = f[0], fb[j][1] = f[1], fb[j + 1][0] = f[2], fb[j + 1][1] = f[3];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) mma_m16n8k16(sum[i][j], fa[i], fb[j]);
    }
  }
  copy_async_wait<0>();
  __syncthreads();  // the next tile's copies overwrite what slower warps still read
}

/// Calls f(row, column, x, y) for this thread's elements of the tile: x at the column, which is even, y at the next
/// one.
template <typename F>
__device__ __forceinline__ void for_each_pair(const MmaSum& sum, F&& f) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int j = 0; j < 8; ++j)
        f(mma_warp_row() + 16 * i + 8 * half + lane / 4, mma_warp_column() + 8 * j + lane % 4 * 2, sum[i][j][2 * half],
          sum[i][j][2 * half + 1]);
}

/// sum += factor C of a whole tile whose pairs are aligned. Eight loads are on their way at a time; one after every
/// store would wait for each.
__device__ __forceinline__ void add_scaled(MmaSum& sum, const float* c, std::int64_t stride, float factor) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* row =
          c + (mma_warp_row() + 16 * i + 8 * half + lane / 4) * stride + mma_warp_column() + lane % 4 * 2;
      float2 old[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) old[j] = *reinterpret_cast<const float2*>(row + 8 * j);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        sum[i][j][2 * half] += factor * old[j].x;
        sum[i][j][2 * half + 1] += factor * old[j].y;
      }
    }
}

}  // namespace emox::cuda
