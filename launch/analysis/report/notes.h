// What a report says besides the rows of retention.csv: what each model is, and how sure its figures are.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "launch/analysis/report/retention.h"

namespace emox {

struct ModelNote {
  std::string model;                        ///< as in the rows
  std::string label;                        ///< as in every table and plot
  std::int64_t parameters = 0, active = 0;  ///< of the whole model; that a token meets
  std::string differs;                      ///< values that are not those of the model "emo"
};

/// How a run was trained: the cross entropy of its steps.
struct TrainingLoss {
  std::string model;
  std::int64_t seed = 0;
  std::vector<std::pair<std::int64_t, double>> losses;  ///< (step, nats a token)
};

struct StudyNotes {
  std::vector<ModelNote> models;
  std::vector<ChanceRow> chance;       ///< the draws whose means are the rows "random"
  std::vector<RetentionRow> repeats;   ///< of runs that differ from the one of the same model and seed in rounding only
  std::vector<TrainingLoss> training;  ///< of the runs that are in the rows
  std::vector<std::string> remarks;    ///< sentences: what was left out
  /// The model itself where nothing is known about it.
  const std::string& label(const std::string& model) const {
    for (const ModelNote& note : models)
      if (note.model == model) return note.label;
    return model;
  }
};

/// Mean over domains of |repeat - run| and the like: how far two runs that differ in rounding only are apart.
struct RoundingSpread {
  std::string model;
  std::int64_t seed = 0;
  double full = 0;  ///< loss of the full model, mean over domains: the repeat's less the run's
};
/// One for each repeat whose run is among the rows, for the domains that both have.
std::vector<RoundingSpread> rounding_spreads(const std::vector<RetentionRow>& rows,
                                             const std::vector<RetentionRow>& repeats);

}  // namespace emox
