// How a run's state would be shared out over ranks that do not run: who owns what, what its checkpoints look like, and
// what the ranks send each other for it in every step.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "launch/config/recipe.h"
#include "parallel/checkpoint/manifest.h"
#include "parallel/comm/shares.h"
#include "runtime/core/dtype.h"

namespace emox {

struct StatePlan {
  int ranks = 0, ranks_per_node = 0, expert_parallel = 0;
  /// Of a checkpoint that these ranks save: pieces, files and sizes; checksums are zeros.
  Manifest manifest;
  /// What a rank receives in one step while gradients are added up and weights come back; the rank that receives most
  /// from other nodes.
  Traffic gradients, weights;
};

/// Weights come back in the type of the activations, in which they are used. UsageError when the recipe does not fit
/// these ranks.
StatePlan plan_state(const Recipe& recipe, int ranks, int ranks_per_node, DType activations = DType::F32);
/// {"pieces", "files", "manifest_bytes", "checkpoint_bytes", "gradients": {...}, "weights": {...}}
nlohmann::ordered_json to_json(const StatePlan& plan);
nlohmann::ordered_json to_json(const Traffic& traffic);

}  // namespace emox
