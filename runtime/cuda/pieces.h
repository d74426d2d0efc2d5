// Rows in pieces of 16 bytes, one access each, where they are aligned to that; else element by element. Kernels take
// the number of elements in a piece as a template parameter: kPiece<T>, or 1.
#pragma once

#include <device_ptx.h>

#include <cstdint>
#include <initializer_list>

#include "runtime/core/bf16.h"
#include "runtime/cuda/device.h"

namespace emox::cuda {

/// Elements in 16 bytes.
template <typename T>
inline constexpr int kPiece = 16 / static_cast<int>(sizeof(T));

/// n consecutive elements as floats: n is kPiece<T>, from an aligned address, or 1.
template <int n, typename T>
__device__ __forceinline__ void load_piece(float (&to)[n], const T* from) {
  static_assert(n == 1 || n == kPiece<T>);
  if constexpr (n == 1) {
    to[0] = to_float(from[0]);
  } else {
    const uint4 bits = *reinterpret_cast<const uint4*>(from);
    const std::uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 4) {
        to[i] = __uint_as_float(words[i]);
      } else {
        to[2 * i] = __uint_as_float(words[i] << 16);
        to[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000U);
      }
    }
  }
}

/// The same back, rounded once.
template <int n, typename T>
__device__ __forceinline__ void store_piece(T* to, const float (&from)[n]) {
  static_assert(n == 1 || n == kPiece<T>);
  if constexpr (n == 1) {
    to[0] = from_float<T>(from[0]);
  } else {
    std::uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 4)
        words[i] = __float_as_uint(from[i]);
      else
        words[i] = pack_bf16(from[2 * i], from[2 * i + 1]);
    }
    *reinterpret_cast<uint4*>(to) = uint4{words[0], words[1], words[2], words[3]};
  }
}

/// n consecutive floats, 1 or a multiple of 4 from an aligned address.
template <int n>
__device__ __forceinline__ void load_floats(float (&to)[n], const float* from) {
  if constexpr (n == 1) {
    to[0] = from[0];
  } else {
#pragma unroll
    for (int i = 0; i < n; i += 4) {
      const float4 v = *reinterpret_cast<const float4*>(from + i);
      to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
    }
  }
}
template <int n>
__device__ __forceinline__ void store_floats(float* to, const float (&from)[n]) {
  if constexpr (n == 1) {
    to[0] = from[0];
  } else {
#pragma unroll
    for (int i = 0; i < n; i += 4)
      *reinterpret_cast<float4*>(to + i) = float4{from[i], from[i + 1], from[i + 2], from[i + 3]};
  }
}
/// to += x
template <int n>
__device__ __forceinline__ void add_floats(float* to, const float (&x)[n]) {
  float sum[n];
  load_floats(sum, to);
#pragma unroll
  for (int i = 0; i < n; ++i) sum[i] += x[i];
  store_floats(to, sum);
}

/// True where all of these start on multiples of 16 bytes and `width` elements of T, a row, are a multiple of 16 bytes:
/// then all their rows can go in pieces.
template <typename T>
bool in_pieces(std::int64_t width, std::initializer_list<const void*> starts) {
  bool aligned = width % kPiece<T> == 0;
  for (const void* p : starts) aligned = aligned && reinterpret_cast<std::uintptr_t>(p) % 16 == 0;
  return aligned;
}

}  // namespace emox::cuda
