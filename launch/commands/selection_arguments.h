// The arguments that say how many experts are kept, and how they are chosen: of `emox select` and `emox eval`.
#pragma once

#include "launch/analysis/inference/loaded_model.h"
#include "launch/config/arguments.h"

namespace emox {

/// --keep or --layer-budgets (one of them), --method, --examples, --seed. UsageError beginning with `command`.
SelectionOptions selection_options(const char* command, const Arguments& a);

/// Says so when a subset was chosen on another run than the one of `run` and `checkpoint`: experts that have the same
/// numbers there are other experts here.
void warn_of_other_run(Log& log, const ExpertSubset& subset, const std::string& source, const RunConfig& run,
                       const std::filesystem::path& checkpoint);

}  // namespace emox
