// Learning rates (spec 4). The step counts from 1 at the first update.
#pragma once

#include <cstdint>

namespace emox {

enum class ScheduleKind : std::uint8_t { Cosine, Linear, Constant, Wsd };

struct Schedule {
  ScheduleKind kind = ScheduleKind::Cosine;
  double peak = 1e-3;
  std::int64_t warmup_steps = 0;  ///< the rate rises linearly from 0 to peak at this step
  std::int64_t last_step = 1;     ///< here the rate has reached min_ratio * peak, and stays there
  double min_ratio = 0.1;
  std::int64_t anneal_from_step = 0;  ///< > 0: linear from peak at this step to 0 at last_step, nothing else
  std::int64_t decay_steps = 0;       ///< Wsd: from peak at last_step - decay_steps linearly to min_ratio * peak

  /// After last_step it stays what it is there. Error for a negative step, or one before anneal_from_step: no run that
  /// is to be annealed is there yet.
  double learning_rate(std::int64_t step) const;
};

}  // namespace emox
