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

/// e^x for |x| <= 87.3, where 2^n is a normal number and one scaling by it is enough: half of what exp_approx costs,
/// the same polynomial. F: float or a vector of them; Bits: unsigned integers of the same width, which wrap for larger
/// x.
template <typename Bits, typename F>
inline F exp_normal(F x) {
  constexpr float round_to_integer = 0x1.8p23F;  // adding it leaves round(x / ln2) in the lowest bits
  const F shifted = x * 1.44269504088896341F + round_to_integer;
  const F n = shifted - round_to_integer;
  F r = x - n * 0.693359375F;
  r = r + n * 2.12194440e-4F;
  F p = r * 1.9875691500e-4F + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * (r * r) + (r + 1.0F);
  const Bits power = (std::bit_cast<Bits>(shifted) << 23) + (127U << 23);  // exponent field n + 127
  return p * std::bit_cast<F>(power);
}

/// 1 / (1 + e^-x), for |x| > 87.3 as at 87.3: within 1.3e-38 of 0 or 1.
inline float sigmoid(float x) {
  constexpr float limit = 87.3F;
  float y = -x;
  y = y < -limit ? -limit : (y > limit ? limit : y);  // NaN passes through
  return 1.0F / (1.0F + exp_normal<std::uint32_t>(y));
}

}  // namespace emox::cpu
