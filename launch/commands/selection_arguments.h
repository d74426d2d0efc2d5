// The arguments that say how many experts are kept, and how they are chosen: of `emox select` and `emox eval`.
#pragma once

#include "launch/commands/command.h"
#include "launch/inference/loaded_model.h"

namespace emox {

/// --keep or --layer-budgets (one of them), --method, --examples, --seed. UsageError beginning with `command`.
SelectionOptions selection_options(const char* command, const Arguments& a);

}  // namespace emox
