// Products of a warp's rows, 16 or 32, with tiles in shared memory, by the tensor cores: with 32 rows what is loaded of
// the tile serves twice, and loads from shared memory do not set the pace. What FlashAttention-2 does with
// queries against keys, its gradient does with keys against queries: the same two products, and the result of the first
// becomes the left side of the second without leaving the registers.
#pragma once

#include <device_ptx.h>

#include <cstdint>
#include <type_traits>

#include "runtime/core/bf16.h"
#include "runtime/cuda/attention.h"

namespace emox::cuda {

inline constexpr float kLog2E = 1.4426950408889634F;

/// `rows` rows of a head. 16 bytes behind each row make ldmatrix meet every bank once.
template <int rows, int d>
struct alignas(16) HeadTile {
  Bf16 at[rows][d + 8];
};

/// A warp's 16 m rows of n accumulators; element [b][j][i] is at row 16 b + lane / 4 + 8 (i / 2), column 8 j + 2 (lane
/// % 4) + i % 2.
template <int m, int n>
struct RowBlock {
  float at[m][n / 8][4];
  __device__ void clear() {
    for_each([](float& x, int, int) { x = 0.0F; });
  }
  /// Calls f(element, number of the lane's row: 2 m of them, column).
  template <typename F>
  __device__ __forceinline__ void for_each(F&& f) {
#pragma unroll
    for (int b = 0; b < m; ++b)
#pragma unroll
      for (int j = 0; j < n / 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          f(at[b][j][i], 2 * b + i / 2, 8 * j + 2 * (static_cast<int>(threadIdx.x) % 4) + i % 2);
  }
};
/// Where the lane's row of that number lies among the warp's.
__device__ __forceinline__ int lane_row(int number) { return static_cast<int>(threadIdx.x) % kWarp / 4 + 8 * number; }

/// Starts copying rows [first, first + rows) of a head into a tile; zeros in rows from `end` on and in columns from
/// head_dim on. One group of copies of each thread.
template <int threads, int rows, int d>
__device__ inline void fetch_tile(HeadTile<rows, d>& tile, HeadRows<const Bf16> from, std::int64_t first,
                                  std::int64_t end, int head, int head_dim) {
  constexpr int kPieces = d / 8, kStep = threads / kPieces;
  static_assert(threads % kPieces == 0 && rows % kStep == 0);
  const int at = static_cast<int>(threadIdx.x) / kPieces, column = static_cast<int>(threadIdx.x) % kPieces * 8;
  const Bf16* source = from.row(first + at, static_cast<std::int64_t>(head) * head_dim + column);
#pragma unroll 1  // all addresses at once would take registers from the products
  for (int row = at; row < rows; row += kStep, source += kStep * from.stride) {
    const bool valid = first + row < end && column < head_dim;
    copy_async_16(&tile.at[row][column], valid ? source : from.at, valid);
  }
}

/// s = the warp's rows of `left`, from `row` on, times the transpose of all n rows of `right`: s[i, j] = <left[i],
/// right[j]>.
template <int m, int n, int rows, int d>
__device__ __forceinline__ void row_products(RowBlock<m, n>& s, const HeadTile<rows, d>& left, int row,
                                             const HeadTile<n, d>& right) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  s.clear();
#pragma unroll
  for (int k = 0; k < d; k += 16) {
    std::uint32_t a[m][4];
#pragma unroll
    for (int b = 0; b < m; ++b) load_matrices_x4(a[b], &left.at[row + 16 * b + lane % 16][k + lane / 16 * 8]);
#pragma unroll
    for (int j = 0; j < n; j += 16) {
      std::uint32_t r[4];
      load_matrices_x4(r, &right.at[j + lane % 8 + lane / 16 * 8][k + lane / 8 % 2 * 8]);
      const std::uint32_t low[2] = {r[0], r[1]}, high[2] = {r[2], r[3]};
#pragma unroll
      for (int b = 0; b < m; ++b) {
        mma_m16n8k16(s.at[b][j / 8], a[b], low);
        mma_m16n8k16(s.at[b][j / 8 + 1], a[b], high);
      }
    }
  }
}

/// o += p times the n rows of `right`, p rounded to bf16.
template <int m, int n, int d>
__device__ __forceinline__ void add_weighted_rows(RowBlock<m, d>& o, const RowBlock<m, n>& p,
                                                  const HeadTile<n, d>& right) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int k = 0; k < n; k += 16) {
    std::uint32_t a[m][4];
#pragma unroll
    for (int b = 0; b < m; ++b) {
      const auto &even = p.at[b][k / 8], &odd = p.at[b][k / 8 + 1];
      a[b][0] = pack_bf16(even[0], even[1]), a[b][1] = pack_bf16(even[2], even[3]);
      a[b][2] = pack_bf16(odd[0], odd[1]), a[b][3] = pack_bf16(odd[2], odd[3]);
    }
#pragma unroll
    for (int j = 0; j < d; j += 16) {
      std::uint32_t r[4];
      load_matrices_x4_transposed(r, &right.at[k + lane % 16][j + lane / 16 * 8]);
      const std::uint32_t low[2] = {r[0], r[1]}, high[2] = {r[2], r[3]};
#pragma unroll
      for (int b = 0; b < m; ++b) {
        mma_m16n8k16(o.at[b][j / 8], a[b], low);
        mma_m16n8k16(o.at[b][j / 8 + 1], a[b], high);
      }
    }
  }
}

/// Rows of f32 on their way from registers to write_rows(). Four more than d keep the rows off each other's banks.
template <int rows, int d>
struct alignas(16) FloatRows {
  static constexpr int ld = d + 4;
  float at[rows][ld];
};

template <int m, int rows, int d>
__device__ inline void put_rows(FloatRows<rows, d>& to, int row, RowBlock<m, d>& from) {
  from.for_each([&](float x, int number, int column) { to.at[row + lane_row(number)][column] = x; });
}

/// A warp's consecutive rows of a tile: tokens [low, high]. None of them exists: idle.
struct WarpTokens {
  int row;  // in the tile
  int low, high;
  bool idle;
  template <int rows>
  static __device__ WarpTokens of(int first, int tokens) {
    const int at = static_cast<int>(threadIdx.x) / kWarp * rows, from = first + at;
    return {at, from, from + rows <= tokens ? from + rows - 1 : tokens - 1, from >= tokens};
  }
};

/// write_rows() in whole pieces where these do not straddle the halves that turn.
template <int rows, int d>
__device__ inline void write_head(HeadRows<Bf16> to, const FloatRows<rows, d>& from, TileAt at, int count, int head_dim,
                                  float factor, const Turn& turn) {
  if (head_dim % 16 == 0 || turn.positions == nullptr)
    write_rows<8>(to, from.at[0], from.ld, at, count, head_dim, factor, turn);
  else
    write_rows<1>(to, from.at[0], from.ld, at, count, head_dim, factor, turn);
}

/// Calls f with the narrowest instance that holds head_dim.
template <typename F>
void by_head_width(int head_dim, F&& f) {
  if (head_dim <= 32)
    f(std::integral_constant<int, 32>{});
  else if (head_dim <= 64)
    f(std::integral_constant<int, 64>{});
  else
    f(std::integral_constant<int, 128>{});
}

}  // namespace emox::cuda
