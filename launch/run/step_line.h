// A step's line in metrics.jsonl.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>

#include "model/training/training_step.h"
#include "runtime/telemetry/spans.h"

namespace emox {

/// What the trainer knows of a step besides its metrics.
struct StepFacts {
  std::int64_t step = 0, tokens = 0;  ///< tokens: of the run up to this step
  double learning_rate = 0, tokens_per_s = 0, step_s = 0, gemm_floor_fraction = 0;
  bool skipped = false;
  std::int64_t skipped_steps = 0;
  bool has_experts = false;
};

/// Phases are those of the telemetry since it was cleared.
nlohmann::ordered_json step_line(const StepFacts& facts, const StepMetrics& m, Telemetry& telemetry);

}  // namespace emox
