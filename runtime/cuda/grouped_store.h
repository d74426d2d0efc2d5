// How the grouped products of bf16 write C: pairs of neighbouring elements, straight from registers.
#pragma once

#include <device_ptx.h>

#include <cstdint>

#include "runtime/cuda/device.h"

namespace emox::cuda {

// Of two elements the second may be beyond the row's end. wide: both are there and C allows to write them at once.
__device__ __forceinline__ void store_pair(Bf16* c, float x, float y, float, bool second, bool wide) {
  if (wide) {
    *reinterpret_cast<std::uint32_t*>(c) = pack_bf16(x, y);
    return;
  }
  c[0] = Bf16(x);
  if (second) c[1] = Bf16(y);
}

__device__ __forceinline__ void store_pair(float* c, float x, float y, float beta, bool second, bool wide) {
  if (wide) {
    auto& to = *reinterpret_cast<float2*>(c);
    if (beta != 0.0F) {
      const float2 old = to;
      x += beta * old.x, y += beta * old.y;
    }
    to = float2{x, y};
    return;
  }
  c[0] = beta == 0.0F ? x : x + beta * c[0];
  if (second) c[1] = beta == 0.0F ? y : y + beta * c[1];
}

}  // namespace emox::cuda
