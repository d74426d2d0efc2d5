// Keys that a recipe sets although nothing reads them beside its other values: rarely what was meant.
#pragma once

#include <string>
#include <vector>

#include "launch/config/recipe.h"

namespace emox {

/// "train.decay_steps = 100 has no effect with train.schedule = cosine" for every key that has another value than its
/// default, and no influence. Keys of pools are left out in a model without them, and those of experts in a dense one:
/// recipes that are compared with EMO keep them.
std::vector<std::string> unused_keys(const Recipe& recipe);

}  // namespace emox
