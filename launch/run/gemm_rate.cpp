#include "launch/run/gemm_rate.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "runtime/core/tensor.h"
#include "runtime/ops/basic.h"
#include "runtime/ops/matmul.h"

namespace emox {

double gemm_rate(Context& ctx, int repetitions, std::int64_t size) {
  const std::int64_t n = size;
  Context quiet = ctx;
  quiet.telemetry = nullptr;
  const Tensor a(ctx.device, DType::F32, {n, n}), b(ctx.device, DType::F32, {n, n}), c(ctx.device, DType::F32, {n, n});
  ops::fill(quiet, a, 0.5F);
  ops::fill(quiet, b, 0.25F);
  std::vector<double> rates;
  for (int i = 0; i <= repetitions; ++i) {
    const auto start = std::chrono::steady_clock::now();
    ops::matmul_nn(quiet, c, a, b);
    const double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (i > 0) rates.push_back(2.0 * static_cast<double>(n * n * n) / s);  // the first one warms up
  }
  std::nth_element(rates.begin(), rates.begin() + static_cast<std::ptrdiff_t>(rates.size() / 2), rates.end());
  return rates[rates.size() / 2];
}

double GemmFloor::fraction(double flops, double seconds, Log* log) {
  constexpr int kMeasurements = 3;
  const double reached = flops / seconds;
  if (reached > rate_) {
    const double before = rate_;
    if (corrections_ < kMeasurements) rate_ = std::max(rate_, measure_());
    rate_ = std::max(rate_, reached);
    if (corrections_++ == 0 && log != nullptr)
      log->info(
          "a step reached {:.0f} GFLOP/s a rank, more than the {:.0f} of a large matrix product at the start: the "
          "machine was busy with something else then. From here on % of GEMM is of {:.0f} GFLOP/s",
          reached / 1e9, before / 1e9, rate_ / 1e9);
  }
  return reached / rate_;
}

}  // namespace emox
