#include "launch/run/gemm_rate.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "runtime/core/accelerator.h"
#include "runtime/core/out_of_memory.h"
#include "runtime/core/tensor.h"
#include "runtime/ops/basic.h"
#include "runtime/ops/matmul.h"
#include "runtime/rng/philox.h"

namespace emox {

namespace {

/// Large enough to fill a device: 8192 for one with 132 processors.
std::int64_t device_size(Device device) {
  const std::int64_t processors = cuda::accelerator()->properties(device.index).processors;
  return std::clamp<std::int64_t>(64 * processors / 256 * 256, 256, 8192);
}

/// What is worth a wait for a device, which works while the host enqueues the next call.
int calls_at_a_time(const Context& ctx) { return ctx.queue != nullptr ? 8 : 1; }

/// Seconds of one call, `repetitions` times after one that warms up; the median.
template <typename Call>
double median_seconds(const Context& ctx, int repetitions, Call&& call) {
  const int calls = calls_at_a_time(ctx);
  std::vector<double> seconds;
  for (int i = 0; i <= repetitions; ++i) {
    synchronize(ctx);
    const auto start = std::chrono::steady_clock::now();
    for (int c = 0; c < calls; ++c) call();
    synchronize(ctx);
    const double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (i > 0) seconds.push_back(s / calls);
  }
  const auto middle = seconds.begin() + static_cast<std::ptrdiff_t>((seconds.size() - 1) / 2);
  std::nth_element(seconds.begin(), middle, seconds.end());
  return *middle;
}

/// Values as a run has them: a device multiplies equal ones faster, for they take less power.
void fill_operand(Context& ctx, TensorView x) {
  if (ctx.queue == nullptr) return ops::fill(ctx, x, 0.25F);
  const std::int64_t rows = std::min<std::int64_t>(x.dim(0), 256);
  const Tensor block(ctx.device, DType::F32, {rows, x.dim(1)});
  ops::random_truncated_normal(ctx, block, Philox(0, RngPurpose::Test), 0, 0, 1.0F, 3.0F);
  for (std::int64_t i = 0; i < x.dim(0); i += rows) {
    const TensorView to = x.rows(i, std::min(i + rows, x.dim(0))), from = block.view().rows(0, to.dim(0));
    if (x.dtype() == DType::F32)
      ops::copy(ctx, to, from);
    else
      ops::convert(ctx, to, from);
  }
}

double rate_of_size(Context& ctx, int repetitions, std::int64_t n) {
  const DType type = ctx.activations;
  const Tensor a(ctx.device, type, {n, n}), b(ctx.device, type, {n, n}), c(ctx.device, type, {n, n});
  fill_operand(ctx, a);
  fill_operand(ctx, b);
  const double s = median_seconds(ctx, repetitions, [&] { ops::matmul_nn(ctx, c, a, b); });
  return 2.0 * static_cast<double>(n * n * n) / s;
}

}  // namespace

double gemm_rate(Context& ctx, int repetitions, std::int64_t size) {
  Context quiet = ctx;
  quiet.telemetry = nullptr;
  if (ctx.queue == nullptr) return rate_of_size(quiet, repetitions, size);
  constexpr std::int64_t kLeast = 1024;
  for (std::int64_t n = device_size(ctx.device);; n /= 2) {
    try {
      return rate_of_size(quiet, repetitions, n);
    } catch (const OutOfMemoryError&) {  // a run may fill the device, and is measured all the same
      if (n <= kLeast) throw;
    }
  }
}

double copy_rate(Context& ctx) {
  Context quiet = ctx;
  quiet.telemetry = nullptr;
  std::int64_t n = 32 << 20;
  if (ctx.queue != nullptr)  // several times what a device's cache holds
    n = std::clamp<std::int64_t>(std::int64_t{cuda::accelerator()->properties(ctx.device.index).processors} << 19,
                                 1 << 20, 64 << 20);
  const Tensor a(ctx.device, DType::F32, {n}), b(ctx.device, DType::F32, {n});
  return 8.0 * static_cast<double>(n) / median_seconds(quiet, 5, [&] { ops::copy(quiet, b, a); });
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
