// Where the sequences of a run begin to be read: at its first step, or where a resume changed its batch or its sources.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/loader/loader.h"

namespace emox {

/// Where the sources of a run are going on with `sequences_per_step` and `sources` of `config`, which was read from
/// `config.start` until `step` was done: for `now`, whose sources, weights and batch may be others. Every source goes
/// on where it was, by its label; a new one begins with its first sequence, in an order of its own. So does one that
/// was left out and comes back, for its label may stand for other text then, and one in `replaced`, whose label does
/// now.
LoaderStart continue_after(const LoaderConfig& config, std::int64_t step, const std::vector<SourceSpec>& now,
                           const std::vector<std::string>& replaced = {});

}  // namespace emox
