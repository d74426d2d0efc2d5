// `emox bench dispatch RECIPE.ini`: one MoE layer's dispatch and combine, forward and backward, run by the ranks that
// were started, on the CPU or on devices: time and bytes, beside what the links carry.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "launch/config/recipe.h"
#include "launch/run/session.h"

namespace emox {

/// A rank's micro-batch of the recipe, in documents of a whole sequence, whose pools and picks are drawn uniformly.
/// Medians of `repeats` runs, of the slowest rank. "bytes" of the rank that sends most; "link_ratio": the time over
/// what these bytes need at the rate of link_rates(), null where no other rank takes part. Collective.
nlohmann::ordered_json bench_exchange(Session& session, const Recipe& recipe, int repeats);
std::string exchange_table(const nlohmann::ordered_json& result);

}  // namespace emox
