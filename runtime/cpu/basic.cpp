#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "runtime/core/idx.h"
#include "runtime/cpu/kernels.h"
#include "runtime/cpu/parallel.h"
#include "runtime/cpu/stream_copy.h"

namespace emox::cpu {
namespace {

// Inverse of the standard normal distribution function: Acklam's rational approximation (relative error 1.2e-9),
// then one Halley step with erfc, which brings it to the accuracy of double.
double inverse_normal_cdf(double p) {
  static constexpr double a[] = {-3.969683028665376e+01, 2.209460984245205e+02,  -2.759285104469687e+02,
                                 1.383577518672690e+02,  -3.066479806614716e+01, 2.506628277459239e+00};
  static constexpr double b[] = {-5.447609879822406e+01, 1.615858368580409e+02, -1.556989798598866e+02,
                                 6.680131188771972e+01, -1.328068155288572e+01};
  static constexpr double c[] = {-7.784894002430293e-03, -3.223964580411365e-01, -2.400758277161838e+00,
                                 -2.549732539343734e+00, 4.374664141464968e+00,  2.938163982698783e+00};
  static constexpr double d[] = {7.784695709041462e-03, 3.224671290700398e-01, 2.445134137142996e+00,
                                 3.754408661907416e+00};
  double x;
  if (p < 0.02425 || p > 1 - 0.02425) {
    const double q = std::sqrt(-2 * std::log(std::min(p, 1 - p)));
    x = (((((c[0] * q + c[1]) * q + c[2]) * q + c[3]) * q + c[4]) * q + c[5]) /
        ((((d[0] * q + d[1]) * q + d[2]) * q + d[3]) * q + 1);
    if (p > 0.5) x = -x;
  } else {
    const double q = p - 0.5, r = q * q;
    x = (((((a[0] * r + a[1]) * r + a[2]) * r + a[3]) * r + a[4]) * r + a[5]) * q /
        (((((b[0] * r + b[1]) * r + b[2]) * r + b[3]) * r + b[4]) * r + 1);
  }
  const double e = 0.5 * std::erfc(-x / std::sqrt(2.0)) - p;
  const double u = e * std::sqrt(2 * 3.14159265358979323846) * std::exp(x * x / 2);
  return x - u / (1 + x * u / 2);
}

constexpr std::int64_t kGrain = 16384;

}  // namespace

void fill(Context& ctx, TensorView x, float value) {
  auto* p = x.data<float>();
  parallel_pieces(ctx, x.numel(), kGrain, [&](std::int64_t b, std::int64_t e, int) { std::fill(p + b, p + e, value); });
}

void zero(Context& ctx, TensorView x) {
  auto* p = static_cast<char*>(x.raw());
  parallel_pieces(ctx, static_cast<std::int64_t>(x.bytes()), kGrain * 4, [&](std::int64_t b, std::int64_t e, int) {
    if (e > b) std::memset(p + b, 0, idx(e - b));
  });
}

void copy(Context& ctx, TensorView dst, TensorView src) {
  auto* d = static_cast<char*>(dst.raw());
  const auto* s = static_cast<const char*>(src.raw());
  const auto n = static_cast<std::int64_t>(src.bytes());
  parallel_pieces(ctx, n, kGrain * 4, [&](std::int64_t b, std::int64_t e, int) {
    if (e <= b) return;
    if (n >= kStreamedCopy)
      stream_copy(d + b, s + b, idx(e - b));
    else
      std::memcpy(d + b, s + b, idx(e - b));
  });
}

void convert(Context& ctx, TensorView dst, TensorView src) {
  const auto each = [&](auto* to, const auto* from) {
    using To = std::remove_pointer_t<decltype(to)>;
    parallel_pieces(ctx, src.numel(), kGrain, [&](std::int64_t b, std::int64_t e, int) {
      for (std::int64_t i = b; i < e; ++i) to[i] = static_cast<To>(from[i]);
    });
  };
  if (dst.dtype() == DType::BF16)
    each(dst.data<Bf16>(), src.data<float>());
  else
    each(dst.data<float>(), src.data<Bf16>());
}

void add(Context& ctx, TensorView y, TensorView x) {
  auto* py = y.data<float>();
  const auto* px = x.data<float>();
  parallel_pieces(ctx, x.numel(), kGrain, [&](std::int64_t b, std::int64_t e, int) {
#pragma omp simd
    for (std::int64_t i = b; i < e; ++i) py[i] += px[i];
  });
}

void random_truncated_normal(Context& ctx, TensorView x, const Philox& philox, std::uint32_t stream,
                             std::int64_t first_element, double std, double bound) {
  auto* p = x.data<float>();
  const double low = 0.5 * std::erfc(bound / std / std::sqrt(2.0));  // distribution function at -bound
  parallel_pieces(ctx, x.numel(), 1024, [&](std::int64_t b, std::int64_t e, int) {
    for (std::int64_t i = b; i < e; ++i) {
      const auto n = static_cast<std::uint64_t>(first_element + i);
      const double u = philox.uniform({static_cast<std::uint32_t>(n), static_cast<std::uint32_t>(n >> 32), stream, 0});
      const double z = std * inverse_normal_cdf(low + u * (1 - 2 * low));
      p[i] = static_cast<float>(std::clamp(z, -bound, bound));
    }
  });
}

void copy_to_host(Context&, void* dst, TensorView src) {
  if (src.bytes() != 0) std::memcpy(dst, src.raw(), src.bytes());
}

void copy_from_host(Context&, TensorView dst, const void* src) {
  if (dst.bytes() != 0) std::memcpy(dst.raw(), src, dst.bytes());
}

}  // namespace emox::cpu
