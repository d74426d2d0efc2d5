// What kernels share: element types, sums over warps and blocks, reports of wrong indices.
#pragma once

#include <cuda_runtime.h>
#include <device_ptx.h>

#include <cstdint>

#include "runtime/core/bf16.h"
#include "runtime/ops/fault.h"
#include "runtime/ops/op_list.h"

namespace emox::cuda {

inline constexpr unsigned kAllLanes = ~0U;
inline constexpr int kWarp = 32;

__host__ __device__ inline float to_float(float x) { return x; }
__host__ __device__ inline float to_float(Bf16 x) { return static_cast<float>(x); }
template <typename T>
__host__ __device__ inline T from_float(float x) {
  return static_cast<T>(x);
}

/// Calls f(T{}) with the type of the context's activations: the two instances of a kernel.
template <typename F>
void by_type(DType type, F&& f) {
  if (type == DType::BF16)
    f(Bf16{});
  else
    f(float{});
}

struct Plus {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Larger {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

/// The same value in every lane: op over all 32, in a fixed order.
template <typename T, typename F>
__device__ inline T over_warp(T v, F op) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) v = op(v, __shfl_xor_sync(kAllLanes, v, lanes));
  return v;
}

/// The same value in every thread of the block (whole warps, at most 32): op over all, in a fixed order. `slots` is
/// shared memory of 33 values; its use needs no barrier before or after.
template <typename T, typename F>
__device__ inline T over_block(T v, T* slots, F op) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  v = over_warp(v, op);
  __syncthreads();  // the slots may still be read from the call before
  if (lane == 0) slots[warp] = v;
  __syncthreads();
  T sum = slots[0];
  for (int w = 1; w < warps; ++w) sum = op(sum, slots[w]);
  return sum;
}

/// Reports the element of an operand as ops/fault.h says, unless the word holds an older report.
__device__ inline void report_fault(double* word, ops::Op op, int operand, std::int64_t index) {
  const double fault =
      static_cast<double>((static_cast<std::int64_t>(op) + 1) << 45 | static_cast<std::int64_t>(operand) << 41 | index);
  atomicCAS(reinterpret_cast<unsigned long long*>(word), 0ULL,
            static_cast<unsigned long long>(__double_as_longlong(fault)));
}

}  // namespace emox::cuda
