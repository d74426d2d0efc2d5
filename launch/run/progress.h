// What a person watching a run sees: one line that is rewritten on a terminal, plain lines elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "model/training/training_step.h"

namespace emox {

/// The place of a run among others that are done one after another; empty: it is alone.
struct RunOfMany {
  std::string label;             ///< begins the line, e.g. "2/6 standard-seed1"
  std::int64_t later_steps = 0;  ///< of the runs after this one, taken to be as long as its own
};

/// One line: rewritten on a terminal as often as it is shown, elsewhere written again every few seconds. Where nobody
/// reads any more it is dropped.
class ProgressLine {
 public:
  explicit ProgressLine(bool enabled);
  ~ProgressLine() { finish(); }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;
  /// False: the text need not be made, it would not be shown now.
  bool due() const;
  void show(const std::string& text);
  /// Leaves the line standing, so that other output starts on a new one.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  bool enabled_, terminal_, open_ = false;
  Clock::time_point last_shown_ = Clock::time_point::min();
};

/// How far an evaluation is and how long it will take, once it has taken a few seconds.
class EvaluationProgress {
 public:
  /// `what` begins the line, e.g. "evaluation after step 300".
  EvaluationProgress(std::string what, bool enabled);
  void show(std::int64_t done, std::int64_t of);

 private:
  std::string what_;
  ProgressLine line_;
  std::chrono::steady_clock::time_point start_;
};

class Progress {
 public:
  Progress(std::int64_t last_step, bool enabled, RunOfMany among = {});
  /// On a terminal every step; elsewhere the first step, then one line every few seconds, and the last step.
  void show(std::int64_t step, const StepMetrics& m, double learning_rate, double tokens_per_s, double step_s,
            double gemm_floor_fraction);
  void finish() { line_.finish(); }

 private:
  std::int64_t last_step_;
  RunOfMany among_;
  ProgressLine line_;
  double mean_step_s_ = 0;
};

/// "1 h 02 min", "3 min 20 s", "12 s".
std::string format_duration(double seconds);

}  // namespace emox
