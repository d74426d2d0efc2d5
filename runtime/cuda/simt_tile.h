// One 64x64 tile of a product by plain multiply-adds, for f32 (equality with the CPU) and for what tensor cores cannot
// take: any strides, any alignment. Each of 256 threads owns 4x4 elements; K goes in order, 16 at a time, through
// shared memory.
#pragma once

#include <cstdint>

#include "runtime/cuda/device.h"

namespace emox::cuda {

inline constexpr int kSimtTile = 64, kSimtStep = 16, kSimtThreads = 256;

struct SimtShared {
  // Rows of 68 floats: their beginnings fall into different banks, each at a multiple of 16 bytes.
  alignas(16) float a[kSimtStep][kSimtTile + 4];
  alignas(16) float b[kSimtStep][kSimtTile + 4];
};

/// The part of A (rows of C) or B (columns of C) that a tile meets: `extent` lines, element k of line i at
/// i * line + k * step. One of the strides is 1.
template <typename T>
struct SimtOperand {
  const T* at;
  std::int64_t line, step, extent;
};

namespace detail {

template <typename T>
__device__ inline void load_simt(float (&to)[kSimtStep][kSimtTile + 4], const SimtOperand<T>& x, std::int64_t first,
                                 std::int64_t depth) {
  for (int i = static_cast<int>(threadIdx.x); i < kSimtTile * kSimtStep; i += kSimtThreads) {
    // Neighbouring threads read neighbouring elements.
    const int k = x.step == 1 ? i % kSimtStep : i / kSimtTile, line = x.step == 1 ? i / kSimtStep : i % kSimtTile;
    const bool valid = line < x.extent && first + k < depth;
    to[k][line] = valid ? to_float(x.at[line * x.line + (first + k) * x.step]) : 0.0F;
  }
}

}  // namespace detail

/// sum[i][j] = element (4 (thread / 16) + i, 4 (thread % 16) + j) of A B over `depth` elements of K.
template <typename T>
__device__ inline void simt_tile(SimtShared& s, float (&sum)[4][4], const SimtOperand<T>& a, const SimtOperand<T>& b,
                                 std::int64_t depth) {
  const int row = static_cast<int>(threadIdx.x) / 16 * 4, column = static_cast<int>(threadIdx.x) % 16 * 4;
  for (auto& line : sum)
    for (float& x : line) x = 0.0F;
  for (std::int64_t first = 0; first < depth; first += kSimtStep) {
    __syncthreads();  // the step before is used up
    detail::load_simt(s.a, a, first, depth);
    detail::load_simt(s.b, b, first, depth);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kSimtStep; ++k) {
      const float4 x = *reinterpret_cast<const float4*>(&s.a[k][row]);
      const float4 y = *reinterpret_cast<const float4*>(&s.b[k][column]);
      const float xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] += xs[i] * ys[j];
    }
  }
}

/// Writes the tile: rows x columns of C from c on, rows `stride` apart; beta times what was there is added.
template <typename C>
__device__ inline void store_simt(C* c, std::int64_t stride, std::int64_t rows, std::int64_t columns,
                                  const float (&sum)[4][4], float beta) {
  const int row = static_cast<int>(threadIdx.x) / 16 * 4, column = static_cast<int>(threadIdx.x) % 16 * 4;
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (row + i >= rows || column + j >= columns) continue;
      C& to = c[(row + i) * stride + column + j];
      to = from_float<C>(beta == 0.0F ? sum[i][j] : sum[i][j] + beta * to_float(to));
    }
}

}  // namespace emox::cuda
