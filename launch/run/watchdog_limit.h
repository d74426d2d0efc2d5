// How long a collective may last before the watchdog ends the job, where parallel.watchdog_s = auto: a node that is
// gone should be known before Slurm knows it (SlurmdTimeout), and a slow model must not be taken for a stuck one.
#pragma once

#include <cstdint>

#include "parallel/comm/communicator.h"

namespace emox {

class WatchdogLimit {
 public:
  static constexpr double kBeforeMeasured = 600, kAtLeast = 60, kSteps = 20;  ///< seconds, seconds, steps
  /// `given_s`: parallel.watchdog_s, which holds where it is not 0. Every rank makes one, and measures the same steps.
  WatchdogLimit(Communicator& comm, double given_s);
  /// Seconds of a step, without what comes between steps.
  void measured(double step_s);
  /// In seconds.
  double now() const;

 private:
  Communicator& comm_;
  bool automatic_;
  std::int64_t steps_ = 0;
  double longest_s_ = 0;  ///< but for the first step, which connects ranks
};

}  // namespace emox
