// One vector register of floats, for loops whose accumulators must stay in registers.
//
// The type is the vector extension of GCC and Clang: operators work on all lanes at once, on any processor.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "runtime/cpu/simd_math.h"

namespace emox::cpu {

#if defined(__AVX512F__)
inline constexpr std::int64_t kLanes = 16;
#elif defined(__AVX__)
inline constexpr std::int64_t kLanes = 8;
#else
inline constexpr std::int64_t kLanes = 4;
#endif

using Lanes [[gnu::vector_size(kLanes * 4)]] = float;
using IntLanes [[gnu::vector_size(kLanes * 4)]] = std::int32_t;
using BitLanes [[gnu::vector_size(kLanes * 4)]] = std::uint32_t;  ///< wraps instead of overflowing

inline Lanes load(const float* p) {
  Lanes v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Lanes v) { std::memcpy(p, &v, sizeof v); }

inline Lanes all_lanes(float x) { return Lanes{} + x; }
inline Lanes larger(Lanes a, Lanes b) { return a > b ? a : b; }

/// 0, 1, 2, ...
inline IntLanes lane_numbers() {
  IntLanes v;
  for (int i = 0; i < static_cast<int>(kLanes); ++i) v[i] = i;
  return v;
}

/// Even = a0 b0 a1 b1 ..., odd = the same of the upper halves.
template <int... kLane>
inline void interleave(Lanes& even, Lanes& odd, Lanes a, Lanes b, std::integer_sequence<int, kLane...>) {
  constexpr int lanes = static_cast<int>(kLanes);
  even = __builtin_shufflevector(a, b, (kLane / 2 + kLane % 2 * lanes)...);
  odd = __builtin_shufflevector(a, b, (kLane / 2 + kLane % 2 * lanes + lanes / 2)...);
}

/// Transposes kLanes rows of kLanes. Interleaving rows i and i + kLanes/2 rotates the bits of an element's index (row,
/// lane) by one; after as many rounds as a row's number has bits, row and lane have changed places.
inline void transpose(Lanes (&rows)[kLanes]) {
#pragma GCC unroll 4
  for (std::int64_t round = 1; round < kLanes; round *= 2) {
    Lanes next[kLanes];
#pragma GCC unroll 8
    for (std::int64_t i = 0; i < kLanes / 2; ++i)
      interleave(next[2 * i], next[2 * i + 1], rows[i], rows[i + kLanes / 2],
                 std::make_integer_sequence<int, static_cast<int>(kLanes)>());
#pragma GCC unroll 16
    for (std::int64_t i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

/// n rounded up to a multiple of `unit`.
constexpr std::int64_t round_up(std::int64_t n, std::int64_t unit) { return (n + unit - 1) / unit * unit; }

/// e^x for x <= 0. Exact 0 for -infinity, NaN kept. Far above 0, where a masked score may lie, the result means nothing
/// and the caller drops it.
inline Lanes exp_nonpositive(Lanes x) {
  constexpr float low = -87.3F;
  const Lanes y = exp_normal<BitLanes>(x < low ? all_lanes(low) : x);  // NaN passes through
  return x < low ? Lanes{} : y;
}

}  // namespace emox::cpu
