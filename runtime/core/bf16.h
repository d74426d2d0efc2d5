// bfloat16: the upper half of a float, for storage. Computing with it means computing with floats.
#pragma once

#include <bit>
#include <cstdint>

namespace emox {

/// Spacing at 1: a float is rounded by at most half of it, relatively.
inline constexpr double kBf16Epsilon = 0x1.0p-7;

class Bf16 {
 public:
  Bf16() = default;
  /// Rounds to the nearest value, ties to even; beyond the largest one to infinity. NaN stays NaN.
  constexpr explicit Bf16(float x) {
    const auto b = std::bit_cast<std::uint32_t>(x);
    if ((b & 0x7FFFFFFFU) > 0x7F800000U)
      bits_ = static_cast<std::uint16_t>(b >> 16 | 0x40U);  // quiet, whatever the lower half held
    else
      bits_ = static_cast<std::uint16_t>((b + 0x7FFFU + (b >> 16 & 1U)) >> 16);
  }
  constexpr explicit operator float() const { return std::bit_cast<float>(static_cast<std::uint32_t>(bits_) << 16); }
  constexpr std::uint16_t bits() const { return bits_; }
  friend bool operator==(const Bf16&, const Bf16&) = default;  // of the bits

 private:
  std::uint16_t bits_ = 0;
};
static_assert(sizeof(Bf16) == 2);

/// The bf16 value nearest to x, as a float.
constexpr float rounded_to_bf16(float x) { return static_cast<float>(Bf16(x)); }

}  // namespace emox
