// What a run would take on each of its ranks, known before it is submitted.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>

#include "launch/config/recipe.h"

namespace emox {

struct RankMemory {
  std::int64_t weights_and_gradients = 0;
  std::int64_t expert_weights = 0;  ///< of these, the routed experts' weights alone
  std::int64_t optimizer = 0;
  std::int64_t activations = 0;  ///< with scratch, receive buffers as reserved at the start
  std::int64_t checkpoint = 0;   ///< the copy that is written while training goes on (checkpoint.async)
  std::int64_t total = 0;        ///< everything that is allocated before the first step
  bool recompute = false;        ///< the forward pass runs twice for lack of memory on this machine, or by the recipe
};

/// Makes model, optimizer and training step of `rank` of `ranks` under a MemoryMeasurement: the code that allocates,
/// without the memory. UsageError when the recipe does not fit these ranks.
RankMemory plan_rank_memory(const Recipe& recipe, int ranks, int ranks_per_node, int rank, int threads);

/// The ranks with the least and the most memory: {"ranks", "mesh", "least": {...}, "most": {...}} (bytes).
nlohmann::ordered_json plan_memory(const Recipe& recipe, int ranks, int ranks_per_node, int threads);

}  // namespace emox
