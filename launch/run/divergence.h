// What to do about a run whose loss has become NaN or infinite.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "launch/config/recipe.h"

namespace emox {

/// The commands after which the run goes on, given what is in its `checkpoints` and that no step after `updated`
/// changed the weights. A checkpoint of that step, or of a skipped one after it, is of no use: its weights give the
/// same loss whatever the learning rate is.
std::string advice_after_divergence(const Recipe& recipe, const std::filesystem::path& checkpoints,
                                    std::int64_t updated);

}  // namespace emox
