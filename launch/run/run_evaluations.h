// The evaluations of a training run: which are due, which an earlier job has left out, and eval.jsonl.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/loader/heldout.h"
#include "launch/config/recipe.h"
#include "launch/run/run_directory.h"
#include "launch/run/session.h"
#include "launch/run/stop_request.h"
#include "model/training/training_step.h"
#include "runtime/telemetry/metrics.h"

namespace emox {

class RunEvaluations {
 public:
  /// Collective. Reads the held-out documents where any evaluation is wanted, so that a damaged file is found now and
  /// not after hours; names sources without any. All must outlive this object; `lines`, eval.jsonl, is null but on rank
  /// 0.
  RunEvaluations(Session& session, const Recipe& recipe, const RunDirectory& directory,
                 const std::vector<SourceSpec>& sources, MetricsSink* lines);

  /// Whether an evaluation belongs after this step: every eval.every_steps, and after the last one if eval.final.
  bool due(std::int64_t step) const;
  /// Collective. Due, and eval.jsonl has none: a job ended after the step and before its evaluation.
  bool missing(std::int64_t step) const;
  /// Collective. In the step's spare memory; the line in eval.jsonl, and a word in the log, on the last step a table.
  /// False, and nothing written: some rank wanted to stop.
  bool evaluate_after(std::int64_t step, LanguageModel& model, TrainingStep& memory, const StopRequest& stop);

 private:
  Session& s_;
  const Recipe& recipe_;
  const RunDirectory& directory_;
  MetricsSink* lines_;
  HeldOutSet held_out_;
};

}  // namespace emox
