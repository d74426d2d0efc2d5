// Sums of all threads before one, over a block.
#pragma once

#include <cuda_runtime.h>

#include "runtime/cuda/device.h"

namespace emox::cuda {

/// The sum over the lanes up to and including this one.
__device__ inline int sum_to_lane(int v) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int by = 1; by < kWarp; by *= 2) {
    const int before = __shfl_up_sync(kAllLanes, v, static_cast<unsigned>(by));
    v += lane >= by ? before : 0;
  }
  return v;
}

struct BlockSum {
  int before;  ///< over the threads before this one
  int all;
};

/// Whole warps, at most 32. `slots` is shared memory of 32 values; its use needs no barrier before or after.
__device__ inline BlockSum sum_before_thread(int v, int* slots) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp, to_lane = sum_to_lane(v);
  __syncthreads();  // the slots may still be read from the call before
  if (lane == kWarp - 1) slots[warp] = to_lane;
  __syncthreads();
  BlockSum sum{to_lane - v, 0};
  for (int w = 0; w < warps; ++w) {
    if (w < warp) sum.before += slots[w];
    sum.all += slots[w];
  }
  return sum;
}

}  // namespace emox::cuda
