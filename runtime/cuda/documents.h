// The document that a token belongs to. Segments i32 [documents + 1] are made and checked on the host.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "runtime/cuda/device.h"

namespace emox::cuda {

/// Among [0, documents), not empty: the last document that begins at `token` or before. A thread by itself.
__device__ inline int document_of(const std::int32_t* segments, int documents, std::int64_t token) {
  int low = 0, end = documents;
  while (end - low > 1) {
    const int middle = low + (end - low) / 2;
    if (segments[middle] <= token)
      low = middle;
    else
      end = middle;
  }
  return low;
}

/// The same by a whole warp that asks for one token: 32 places at a time.
__device__ inline int document_of_warp(const std::int32_t* segments, int documents, std::int64_t token) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int low = 0, end = documents;
  while (end - low > 1) {
    const int step = (end - low + kWarp - 1) / kWarp, at = low + lane * step;
    const unsigned before = __ballot_sync(kAllLanes, at < end && segments[at] <= token ? 1 : 0);
    const int last = before == 0 ? 0 : kWarp - 1 - __clz(static_cast<int>(before));
    low += last * step;
    end = end < low + step ? end : low + step;
  }
  return low;
}

}  // namespace emox::cuda
