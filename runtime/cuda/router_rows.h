// Rows of logits and probabilities as the router's kernels hold them: a warp has a row, column 32 i + lane belongs to
// the lane. So the warp reads and writes whole sectors at any width, no other lane reads what a lane wrote, and equal
// values are met by rising column.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "runtime/cuda/device.h"

namespace emox::cuda {

/// Whole rows stay in registers up to here.
inline constexpr int kRegisterColumns = 512;

/// A value for each column of the warp's row: in registers for up to 32 kSlots columns; for kSlots 0, any number, in
/// the memory that it is made from. [i]: column 32 i + lane.
template <typename T, int kSlots>
struct LaneColumns {
  T v[kSlots] = {};
  __device__ explicit LaneColumns(T*) {}
  __device__ T& operator[](int i) { return v[i]; }
};
template <typename T>
struct LaneColumns<T, 0> {
  T* at;
  __device__ explicit LaneColumns(T* row) : at(row + threadIdx.x % kWarp) {}
  __device__ T& operator[](int i) { return at[kWarp * i]; }
};

/// f(i, column) for the lane's columns below n, rising.
template <int kSlots, typename F>
__device__ __forceinline__ void for_columns(int n, F&& f) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int slots = kSlots > 0 ? kSlots : (n + kWarp - 1) / kWarp;
#pragma unroll
  for (int i = 0; i < slots; ++i) {
    const int column = kWarp * i + lane;
    if (column < n) f(i, column);
  }
}

/// Calls f with kSlots for rows of n columns, as an integral_constant.
template <typename F>
void by_columns(std::int64_t n, F&& f) {
  if (n <= 2 * kWarp)
    f(std::integral_constant<int, 2>{});
  else if (n <= 4 * kWarp)
    f(std::integral_constant<int, 4>{});
  else if (n <= 8 * kWarp)
    f(std::integral_constant<int, 8>{});
  else if (n <= kRegisterColumns)
    f(std::integral_constant<int, kRegisterColumns / kWarp>{});
  else
    f(std::integral_constant<int, 0>{});
}

/// The warp's number in the grid, and how many there are.
__device__ inline std::int64_t warp_of_grid() {
  return (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
}
__device__ inline std::int64_t warps_of_grid() { return static_cast<std::int64_t>(gridDim.x) * blockDim.x / kWarp; }

/// e^x, 0 below e^-87.3 as on the CPU.
__device__ inline float exp_or_zero(float x) { return x < -87.3F ? 0.0F : expf(x); }

/// p = softmax(z) over n columns; -infinity gives 0, NaN anywhere gives NaN everywhere. Returns the log-sum-exp, the
/// same in every lane.
template <int kSlots, typename P, typename Z>
__device__ __forceinline__ float softmax_of_row(P& p, const Z& z, int n) {
  float high = -INFINITY, sum = 0;
  for_columns<kSlots>(n, [&](int i, int column) {
    const float x = z(i, column);
    high = x > high ? x : high;
  });
  high = over_warp(high, Larger());
  for_columns<kSlots>(n, [&](int i, int column) { sum += p[i] = exp_or_zero(z(i, column) - high); });
  sum = over_warp(sum, Plus());
  const float inverse = 1.0F / sum;
  for_columns<kSlots>(n, [&](int i, int) { p[i] *= inverse; });
  return high + logf(sum);
}

/// Numbers above 0 in the order of floats that are no NaN; -0 is 0.
__device__ inline unsigned ordered_bits(float x) {
  const unsigned bits = __float_as_uint(x == 0.0F ? 0.0F : x);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

}  // namespace emox::cuda
