#include "launch/run/stop_request.h"

#include <fmt/format.h>

#include <chrono>

#include "launch/run/signals.h"
#include "parallel/comm/together.h"

namespace emox {
namespace {
constexpr int kTimeUp = 1000;                            // above every signal's number
const auto kStarted = std::chrono::steady_clock::now();  // of the process
}  // namespace

int StopRequest::reason_here() const {
  if (const int signal = StopSignals::received(); signal != 0) return signal;
  if (after_minutes_ <= 0 || !s_.root()) return 0;
  const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - kStarted;
  return passed.count() >= 60 * after_minutes_ ? kTimeUp : 0;
}

bool StopRequest::agreed() {
  if (reason_ != 0) return true;
  reason_ = static_cast<int>(largest_of_ranks(s_.comm(), reason_here()));
  return reason_ != 0;
}

std::string StopRequest::why() const {
  if (reason_ == kTimeUp) return fmt::format("after {:g} minutes (run.stop_after_minutes)", after_minutes_);
  return fmt::format("by {}", signal_name(reason_));
}

}  // namespace emox
