// How fast the machine multiplies matrices and moves memory: the limits that steps and ops are measured against (design
// section 5, bench JSON).
#pragma once

#include <functional>
#include <utility>

#include "runtime/core/context.h"
#include "runtime/telemetry/log.h"

namespace emox {

/// FLOP/s of products of size^3 (on a device: of a size that fills it, or less where it has not the memory for that) in
/// the activations' type: `repetitions` of them, each timed; the median. Uses ctx.threads.
double gemm_rate(Context& ctx, int repetitions, std::int64_t size = 2048);

/// Bytes a second of a large copy, read and write counted: the limit of ops that only move data.
double copy_rate(Context& ctx);

/// Which part of the time of a step its matrix products would need at the rate of a large one: what `% of GEMM` shows.
/// Never above 1: a step that is faster than the rate shows that the rate was measured while something else had the
/// machine, so it is measured again, and is at least what the step reached.
class GemmFloor {
 public:
  /// `measure` gives FLOP/s; called now, and again when a step shows that the last value was too low, a few times at
  /// most.
  explicit GemmFloor(std::function<double()> measure) : measure_(std::move(measure)), rate_(measure_()) {}
  double rate() const { return rate_; }
  /// In (0, 1]. Says it once in the log (may be null) when the rate is corrected.
  double fraction(double flops, double seconds, Log* log);

 private:
  std::function<double()> measure_;
  double rate_;
  int corrections_ = 0;
};

}  // namespace emox
