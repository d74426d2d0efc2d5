// Steps whose loss or gradient norm is a spike, to be skipped (train.skip_spikes). The rule of OLMo-core's
// SkipStepOptimizer, one-sided: a value more than so many standard deviations above the mean of the steps before.
#pragma once

#include <cstdint>
#include <deque>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace emox {

class SpikeGuard {
 public:
  /// `window`: how many steps before are looked at. With fewer than half of it seen, no finite value is a spike.
  SpikeGuard(double deviations, std::int64_t window) : deviations_(deviations), window_(window) {}

  /// Why the step is to be skipped; empty: it is not. Finite values join the window either way, so that a level that
  /// stays is soon none any more. A loss or a norm that is not finite is a spike, but kMostNotFinite in a row are a run
  /// that has diverged: the next one is not skipped. The same numbers give the same answer, so all ranks agree.
  std::string judge(double loss, double norm);
  static constexpr std::int64_t kMostNotFinite = 10;

  std::int64_t skipped() const { return skipped_; }  ///< steps, over all jobs of the run
  /// Whether the last step's loss or norm was not finite: the weights may be beyond help, and are not to be saved.
  bool in_doubt() const { return not_finite_ > 0; }

  /// What a checkpoint must hold for the next job to judge alike, to the last bit.
  nlohmann::json state() const;
  /// UsageError for a state that state() did not write, beginning with `origin`.
  void restore(const nlohmann::json& state, const std::string& origin);

 private:
  double deviations_;
  std::int64_t window_;
  std::deque<double> losses_, norms_;
  std::int64_t not_finite_ = 0;  ///< in a row, up to the last step
  std::int64_t skipped_ = 0;
};

}  // namespace emox
