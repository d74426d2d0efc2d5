// Routed experts chosen by text: "0-3,7" in every layer, "0:0-3;1:7,9" layer by layer.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "parallel/checkpoint/arrays.h"

namespace emox {

using ExpertSelection = std::set<std::pair<std::int64_t, std::int64_t>>;  ///< (layer, expert)

/// The experts below `routed` that a checkpoint has.
ExpertSelection routed_experts_in(const std::vector<SavedArray>& arrays, std::int64_t routed);

/// Those of `available` that the text names. Layer by layer, a layer that is not named keeps none. UsageError,
/// beginning with `origin`, for a text that is not such a choice, and for layers and experts that are not there.
ExpertSelection parse_experts(const std::string& text, const ExpertSelection& available, const std::string& origin);

}  // namespace emox
