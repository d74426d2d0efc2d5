// --profile-steps a:b: the steps that the vendor's profiler of a GPU watches.
#pragma once

#include <cstdint>
#include <string>

#include "launch/run/session.h"

namespace emox {

/// Steps first to last of a run, counted from 1; none: first = 0.
struct StepRange {
  std::int64_t first = 0, last = 0;
  bool empty() const { return first == 0; }
};

/// "a:b", or "a" for one step; UsageError, naming the option, unless 1 <= a <= b.
StepRange parse_step_range(const std::string& option, const std::string& text);

/// Starts the profiler before the first of the steps and stops it after the last; spans are named to it in between.
class StepProfile {
 public:
  /// UsageError when there are steps to watch, but no GPU that the session computes on.
  StepProfile(Session& session, StepRange steps);
  ~StepProfile();
  StepProfile(const StepProfile&) = delete;
  StepProfile& operator=(const StepProfile&) = delete;
  /// UsageError unless the steps are among those from `first` to `last`.
  void check(std::int64_t first, std::int64_t last) const;
  void before(std::int64_t step);
  void after(std::int64_t step);

 private:
  void stop();
  Session& session_;
  StepRange steps_;
  bool on_ = false;
};

}  // namespace emox
