#include "launch/run/watchdog_limit.h"

#include <algorithm>

#include "parallel/comm/progress.h"

namespace emox {
namespace {
constexpr std::int64_t kEnough = 4;  // steps
}

WatchdogLimit::WatchdogLimit(Communicator& comm, double given_s) : comm_(comm), automatic_(given_s == 0) {
  // Of an earlier run in this process, whose steps were others.
  if (automatic_) set_watchdog_limit(comm_, kBeforeMeasured);
}

double WatchdogLimit::now() const {
  return steps_ < kEnough ? kBeforeMeasured : std::max(kAtLeast, kSteps * longest_s_);
}

void WatchdogLimit::measured(double step_s) {
  if (!automatic_) return;
  if (++steps_ > 1) longest_s_ = std::max(longest_s_, step_s);
  if (steps_ >= kEnough) set_watchdog_limit(comm_, now());
}

}  // namespace emox
