#include "model/optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "runtime/core/error.h"

namespace emox {

double Schedule::learning_rate(std::int64_t step) const {
  const auto s = static_cast<double>(step), warmup = static_cast<double>(warmup_steps),
             last = static_cast<double>(last_step);
  if (anneal_from_step > 0) {
    require(anneal_from_step < last_step && step >= anneal_from_step,
            "an anneal from step {} to step {} has no learning rate at step {}", anneal_from_step, last_step, step);
    return peak * std::max(last - s, 0.0) / (last - static_cast<double>(anneal_from_step));
  }
  require(step >= 0, "there is no learning rate at step {}", step);
  if (step < warmup_steps) return peak * s / warmup;
  if (kind == ScheduleKind::Constant) return peak;
  const double low = peak * min_ratio;
  if (kind == ScheduleKind::Wsd) {
    const double left = std::max(last - s, 0.0), length = static_cast<double>(decay_steps);
    return left >= length ? peak : low + (peak - low) * left / length;
  }
  if (step >= last_step) return low;
  const double done = (s - warmup) / (last - warmup);
  if (kind == ScheduleKind::Linear) return peak + (low - peak) * done;
  return low + (peak - low) * (1.0 + std::cos(std::numbers::pi * done)) / 2.0;
}

}  // namespace emox
