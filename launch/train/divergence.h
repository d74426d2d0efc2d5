// What to do about a run whose loss has become NaN or infinite.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "launch/config/recipe.h"

namespace emox {

/// The commands after which the run goes on, given what is in its `checkpoints` when `step` could not be done. The
/// checkpoint of the step before is of no use: its weights give the same loss whatever the learning rate is.
std::string advice_after_divergence(const Recipe& recipe, const std::filesystem::path& checkpoints, std::int64_t step);

}  // namespace emox
