#include "runtime/ops/optim.h"

#include <algorithm>
#include <cmath>

#include "runtime/cpu/kernels.h"
#include "runtime/cpu/parallel.h"
#include "runtime/cpu/prefetch.h"

namespace emox::cpu {
namespace {

// Many independent sums: with one register of them the latency of an addition is the pace, not the memory. The order
// does not depend on the width of a register.
double block_sum_of_squares(const float* p, std::int64_t n) {
  constexpr std::int64_t kWays = 64;
  double sum[kWays] = {};
  std::int64_t j = 0;
  for (; j + kWays <= n; j += kWays) {
    fetch_to_read(p + j + kAhead, kWays);
#pragma omp simd
    for (std::int64_t w = 0; w < kWays; ++w) sum[w] += static_cast<double>(p[j + w]) * static_cast<double>(p[j + w]);
  }
  for (; j < n; ++j) sum[j % kWays] += static_cast<double>(p[j]) * static_cast<double>(p[j]);
  for (std::int64_t half = kWays / 2; half > 0; half /= 2)
    for (std::int64_t w = 0; w < half; ++w) sum[w] += sum[w + half];
  return sum[0];
}

}  // namespace

void sum_of_squares(Context& ctx, TensorView out, TensorView x) {
  // Blocks of fixed size, added in order: the result does not even depend on the number of threads.
  constexpr std::int64_t kBlock = 1 << 16;
  const auto* p = x.data<float>();
  const std::int64_t n = x.numel(), blocks = (n + kBlock - 1) / kBlock;
  constexpr std::int64_t kBatch = 256;
  double partial[kBatch];
  double total = 0;
  for (std::int64_t first = 0; first < blocks; first += kBatch) {
    const std::int64_t count = std::min(kBatch, blocks - first);
    parallel_pieces(ctx, count, 1, [&](std::int64_t b, std::int64_t e, int) {
      for (std::int64_t i = b; i < e; ++i) {
        const std::int64_t begin = (first + i) * kBlock, end = std::min(n, begin + kBlock);
        partial[i] = block_sum_of_squares(p + begin, end - begin);
      }
    });
    for (std::int64_t i = 0; i < count; ++i) total += partial[i];
  }
  *out.data<double>() += total;
}

void adamw(Context& ctx, TensorView param, TensorView copy, TensorView grad, TensorView m, TensorView v,
           const ops::AdamW& o) {
  auto *p = param.data<float>(), *pm = m.data<float>(), *pv = v.data<float>();
  const auto* g = grad.data<float>();
  auto* low = copy.null() ? nullptr : copy.data<Bf16>();
  const auto t = static_cast<double>(o.step);
  const auto b1 = static_cast<float>(o.beta1), b2 = static_cast<float>(o.beta2);
  const auto c1 = static_cast<float>(1.0 - o.beta1), c2 = static_cast<float>(1.0 - o.beta2);
  const auto step_size = static_cast<float>(o.learning_rate / (1.0 - std::pow(o.beta1, t)));
  const auto root = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(o.beta2, t)));
  const auto keep = static_cast<float>(1.0 - o.learning_rate * o.weight_decay);
  const auto scale = static_cast<float>(o.grad_scale), eps = static_cast<float>(o.eps);
  parallel_pieces(ctx, param.numel(), 4096, [&](std::int64_t b, std::int64_t e, int) {
    for (std::int64_t from = b; from < e; from += kStretch) {
      const std::int64_t to = std::min(e, from + kStretch);
      fetch_to_read(g + from + kAhead, kStretch);
      fetch_to_write(p + from + kAhead, kStretch);
      fetch_to_write(pm + from + kAhead, kStretch);
      fetch_to_write(pv + from + kAhead, kStretch);
#pragma omp simd
      for (std::int64_t i = from; i < to; ++i) {
        const float gi = g[i] * scale;
        const float mi = b1 * pm[i] + c1 * gi;
        const float vi = b2 * pv[i] + c2 * gi * gi;
        pm[i] = mi;
        pv[i] = vi;
        p[i] = p[i] * keep - step_size * mi / (std::sqrt(vi) * root + eps);
      }
      if (low == nullptr) continue;
      for (std::int64_t i = from; i < to; ++i) low[i] = Bf16(p[i]);
    }
  });
}

}  // namespace emox::cpu
