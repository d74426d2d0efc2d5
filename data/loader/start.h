// Where the sequences of a run begin to be read: at its first step, or where a resume changed its batch or its sources.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/loader/loader.h"

namespace emox {

/// Where the sources of a run are going on with `sequences_per_step` and `sources` of `config`, which was read from
/// `config.start` until `step` was done: for `now`, whose sources, weights and batch may be others. Every source goes
/// on where it was, by its label; a new one begins with its first sequence; one that is left out is remembered, should
/// it come back. One in `replaced` is new, too: its label now stands for other text.
LoaderStart continue_after(const LoaderConfig& config, std::int64_t step, const std::vector<SourceSpec>& now,
                           const std::vector<std::string>& replaced = {});

}  // namespace emox
