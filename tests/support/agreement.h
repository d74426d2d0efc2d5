// When two training runs are the same run (design 4.6).
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "tests/support/training.h"

namespace emox::test {

/// The largest relative difference of their losses, over the steps that both have.
double loss_deviation(const std::vector<nlohmann::json>& got, const std::vector<nlohmann::json>& want);

/// The largest |a - b| over the tensor's largest |b|, of all tensors; the worst one's name.
struct Deviation {
  double largest = 0;
  std::string name;
};
Deviation tensor_deviation(const NamedValues& got, const NamedValues& want);
double relative(double got, double want);

/// Design 4.6 for a series of steps: losses within 1e-5, or beyond it, up to 1e-4, only after a choice that differs and
/// whose gap was below 1e-5. Returns a text for people; `ok` says whether the rule is kept.
struct SeriesAgreement {
  bool ok = true;
  double largest = 0;  ///< relative difference of losses
  std::string text;
};
SeriesAgreement series_agreement(const TrainingRun& got, const TrainingRun& want);

/// Design 4.6 for one step: loss and its parts within 1e-6, every gradient within 1e-5 of its tensor's largest value;
/// draws, picks and counts equal. `moe`: the routing was recorded.
void expect_same_step(const TrainingRun& got, const TrainingRun& want, bool moe);

}  // namespace emox::test
