// exp for loops that the compiler turns into vector code; about 1 ulp, exact 0 for -infinity, NaN kept.
#pragma once

#include <bit>
#include <cstdint>

namespace emox::cpu {

/// e^x. Range reduction x = n ln2 + r, |r| <= ln2/2, then a polynomial of degree 6 for e^r (Cephes coefficients).
inline float exp_approx(float x) {
  const float clamped = x < -87.3F ? -87.3F : (x > 88.7F ? 88.7F : x);  // NaN passes through
  const float n = __builtin_rintf(clamped * 1.44269504088896341F);
  float r = clamped - n * 0.693359375F;
  r = r + n * 2.12194440e-4F;
  float p = 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * r * r + r + 1.0F;
  // n is split in two so that 2^128 (x just below 88.73) does not overflow the exponent field.
  const auto half = static_cast<std::int32_t>(n) >> 1;
  const auto rest = static_cast<std::int32_t>(n) - half;
  const float scale1 = std::bit_cast<float>((half + 127) << 23);
  const float scale2 = std::bit_cast<float>((rest + 127) << 23);
  const float y = p * scale1 * scale2;
  return x < -87.3F ? 0.0F : y;
}

/// 1 / (1 + e^-x), for |x| > 87.3 as at 87.3: within 1.3e-38 of 0 or 1. One scaling by 2^n is enough in this range, so
/// it costs half of what exp_approx would.
inline float sigmoid(float x) {
  constexpr float limit = 87.3F, round_to_integer = 0x1.8p23F;  // adding the latter leaves round(y) in the lowest bits
  float y = -x;
  y = y < -limit ? -limit : (y > limit ? limit : y);  // NaN passes through
  const float shifted = y * 1.44269504088896341F + round_to_integer;
  const float n = shifted - round_to_integer;
  float r = y - n * 0.693359375F;
  r = r + n * 2.12194440e-4F;
  float p = r * 1.9875691500e-4F + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * (r * r) + (r + 1.0F);
  const auto power = static_cast<std::int32_t>((std::bit_cast<std::uint32_t>(shifted) << 23) + (127U << 23));
  return 1.0F / (1.0F + p * std::bit_cast<float>(power));
}

}  // namespace emox::cpu
