// One 128x256 tile of a bf16 product on Hopper's tensor cores (wgmma), sums in f32. Two warpgroups, each with 64 rows:
// 128 sums a thread. A tile that large, since everything goes through the second-level cache: of a square of 128 the
// tensor cores would wait for the copies.
//
// K goes in order, 64 at a time, in a ring of four stages. All threads copy (cp.async, which fills with zeros what
// ragged rows leave open) and all multiply. While the products of a step run, the copies for two steps later are
// started: they overwrite the stage of the step before the last, whose products everybody has waited for.
//
// A stage holds rows of 128 bytes, 64 elements: of lines along K, the K of the step; of lines across K, 64 lines, one
// such block of 64 rows after the other. Inside 8 rows the pieces of 16 bytes are permuted as wgmma's 128-byte swizzle
// says; copies and products meet every bank once.
#pragma once

#include <device_wgmma.h>

#include <cstdint>

#include "runtime/cuda/device.h"

namespace emox::cuda {

inline constexpr int kWgmmaRows = 128, kWgmmaColumns = 256, kWgmmaStep = 64, kWgmmaStages = 4, kWgmmaThreads = 256;

struct WgmmaShared {
  alignas(1024) std::uint16_t a[kWgmmaStages][kWgmmaRows * kWgmmaStep];
  alignas(1024) std::uint16_t b[kWgmmaStages][kWgmmaColumns * kWgmmaStep];
};

/// Brings one operand's part of the tile, kLines of it, a step of K after the other, 16 bytes at a time: addresses and
/// strides are multiples of that, and so are the extents of rows of memory. Beyond `lines` and `depth` there are zeros.
template <bool kAlong, int kLines>
class WgmmaLoader {
 public:
  /// at: line 0 at k = 0; stride: from a row of memory to the next (lines along K, steps of K across it).
  __device__ WgmmaLoader(const Bf16* at, std::int64_t stride, std::int64_t lines, std::int64_t depth)
      : stride_(stride), depth_(depth), lines_(lines < kLines ? static_cast<int>(lines) : kLines) {
    at_ = at + row() * stride + 8 * piece();
  }

  __device__ __forceinline__ void load(std::uint16_t* stage) {
    const std::int64_t left = (kAlong ? depth_ : lines_) - 8 * piece();
#pragma unroll
    for (int pass = 0; pass < (kAlong ? kLines : kWgmmaStep) / kRows; ++pass) {
      const int r = row() + pass * kRows;
      copy_async_16(stage + place(r), at_ + pass * kRows * stride_, (kAlong ? r < lines_ : r < depth_) && left > 0);
    }
    at_ += kAlong ? kWgmmaStep : kWgmmaStep * stride_;
    depth_ -= kWgmmaStep;
  }

 private:
  static constexpr int kPieces = (kAlong ? kWgmmaStep : kLines) / 8, kRows = kWgmmaThreads / kPieces;
  __device__ static int row() { return static_cast<int>(threadIdx.x) / kPieces; }
  __device__ static int piece() { return static_cast<int>(threadIdx.x) % kPieces; }
  __device__ static int place(int r) {
    const int block = piece() / 8 * (kWgmmaStep * 64);  // 0 along K
    return block + r * 64 + 8 * ((piece() ^ r) & 7);
  }

  const Bf16* at_;
  std::int64_t stride_, depth_;  // depth: of K from here on
  int lines_;
};

using WgmmaSum = float[kWgmmaColumns / 2];

/// The whole tile over `depth` elements of K; the loaders stand at k = 0.
template <bool kAlongA, bool kAlongB>
__device__ __forceinline__ void wgmma_tile(WgmmaShared& s, WgmmaSum& sum, WgmmaLoader<kAlongA, kWgmmaRows> a,
                                           WgmmaLoader<kAlongB, kWgmmaColumns> b, std::int64_t depth) {
#pragma unroll
  for (float& x : sum) x = 0.0F;
  const int steps = static_cast<int>((depth + kWgmmaStep - 1) / kWgmmaStep);
  const auto load = [&](int step) {
    if (step < steps) {
      a.load(s.a[step % kWgmmaStages]);
      b.load(s.b[step % kWgmmaStages]);
    }
    copy_async_commit();  // a group a step, even without copies: the waits below count groups
  };
  // 8 lines, or 8 of K, are 1024 bytes; from 64 lines across K to the next there are 64 rows. 16 of K are 32 bytes
  // along a row, or 16 rows.
  constexpr int kNext = kWgmmaStep * 128, kAdvanceA = kAlongA ? 32 : 16 * 128, kAdvanceB = kAlongB ? 32 : 16 * 128;
  const int group = static_cast<int>(threadIdx.x) / 128;
  constexpr int kAhead = kWgmmaStages - 2;
  for (int step = 0; step < kAhead; ++step) load(step);
  for (int step = 0; step < steps; ++step) {
    copy_async_wait<kAhead - 1>();
    fence_async_proxy();
    __syncthreads();  // the step's stage is complete, and the stage of two steps before is used up
    const std::uint64_t at_a = wgmma_operand(s.a[step % kWgmmaStages] + group * 64 * kWgmmaStep, kNext, 1024);
    const std::uint64_t at_b = wgmma_operand(s.b[step % kWgmmaStages], kNext, 1024);
    wgmma_hold(sum);
    wgmma_fence();
#pragma unroll
    for (int kk = 0; kk < kWgmmaStep / 16; ++kk)
      wgmma_m64n256k16<!kAlongA, !kAlongB>(sum, wgmma_advance(at_a, kk * kAdvanceA),
                                           wgmma_advance(at_b, kk * kAdvanceB));
    wgmma_commit();
    wgmma_hold(sum);
    load(step + kAhead);
    wgmma_wait<1>();
  }
  wgmma_wait<0>();
  wgmma_hold(sum);
  copy_async_wait<0>();
  __syncthreads();  // the next tile's copies overwrite what the other warpgroup's products still read
}

/// Calls f(row, column, x, y) for this thread's elements of the tile: x at the column, which is even, y at the next
/// one.
template <typename F>
__device__ __forceinline__ void for_each_pair(const WgmmaSum& sum, F&& f) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int j = 0; j < kWgmmaColumns / 8; ++j)
      f(16 * warp + 8 * half + lane / 4, 8 * j + lane % 4 * 2, sum[4 * j + 2 * half], sum[4 * j + 2 * half + 1]);
}

/// sum += factor C of a whole tile whose pairs are aligned. Eight loads are on their way at a time; one after every
/// store would wait for each.
__device__ __forceinline__ void add_scaled(WgmmaSum& sum, const float* c, std::int64_t stride, float factor) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float* row = c + (16 * warp + 8 * half + lane / 4) * stride + lane % 4 * 2;
#pragma unroll
    for (int first = 0; first < kWgmmaColumns / 8; first += 8) {
      float2 old[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) old[j] = *reinterpret_cast<const float2*>(row + 8 * (first + j));
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        sum[4 * (first + j) + 2 * half] += factor * old[j].x;
        sum[4 * (first + j) + 2 * half + 1] += factor * old[j].y;
      }
    }
  }
}

}  // namespace emox::cuda
