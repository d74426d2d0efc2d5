// What a person watching a run sees: one line that is rewritten on a terminal, plain lines elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "launch/train/training_step.h"

namespace emox {

/// The place of a run among others that are done one after another; empty: it is alone.
struct RunOfMany {
  std::string label;             ///< begins the line, e.g. "2/6 standard-seed1"
  std::int64_t later_steps = 0;  ///< of the runs after this one, taken to be as long as its own
};

class Progress {
 public:
  Progress(std::int64_t first_step, std::int64_t last_step, bool enabled, RunOfMany among = {});
  ~Progress() { finish(); }
  /// On a terminal every step; elsewhere the first step, then one line every few seconds, and the last step.
  void show(std::int64_t step, const StepMetrics& m, double learning_rate, double tokens_per_s, double step_s,
            double gemm_floor_fraction);
  /// Leaves the line standing, so that other output starts on a new one.
  void finish();

 private:
  std::int64_t last_step_;
  RunOfMany among_;
  bool enabled_, terminal_, open_ = false, first_ = true;
  double mean_step_s_ = 0;
  std::chrono::steady_clock::time_point last_shown_;
};

/// "1 h 02 min", "3 min 20 s", "12 s".
std::string format_duration(double seconds);

}  // namespace emox
