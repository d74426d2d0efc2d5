// `emox bench scale`: what host code of a large job takes, in time and memory, without the job. What grows with the
// number of ranks should grow no faster than what a rank has to know.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "launch/config/recipe.h"

namespace emox {

struct ScaleBenchOptions {
  std::vector<int> ranks{8, 64, 512, 1024, 4096};  ///< those that the recipe fits
  int ranks_per_node = 8;
};

/// For every number of ranks: seconds and bytes of planning who owns what, of the manifest (its text, reading it, its
/// index file), of planning a load, on the rank that has most to do. The recipe's batch grows with the ranks where it
/// has to. {"recipe", "ranks_per_node", "rows": [...]}
nlohmann::ordered_json bench_scale(const Recipe& recipe, const ScaleBenchOptions& options);
std::string scale_table(const nlohmann::ordered_json& result);

}  // namespace emox
