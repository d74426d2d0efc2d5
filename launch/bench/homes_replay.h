// `emox bench dispatch --replay FILE --homes affinity`: what sending sequences home saves, on a recording, for ranks
// that need not exist. It is read once to count, once for the placement and once to be replayed; one planned
// micro-batch is in memory.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "launch/bench/dispatch_bench.h"

namespace emox {

/// The first half of the recorded micro-batches chooses a placement by affinity, and homes learn from it; the other
/// half is measured, while homes go on learning. Sequences are laid out in the recording's order into micro-batches of
/// all planned ranks; where the half has too few for one, they are used again ("sequences_reused"). "rows": random
/// placement in turn, then the placement in turn, with learned homes, and in hindsight (homes by the picks themselves).
/// Per token and layer; bytes are of f32 rows, forth and back in both passes. "learned_share_of_hindsight": of what
/// homes save. UsageError for a recording without tokens, or of one micro-batch.
nlohmann::ordered_json replay_homes(const std::filesystem::path& recording, const PlannedMesh& mesh,
                                    const ReplayOptions& options);
std::string homes_table(const nlohmann::ordered_json& result);

}  // namespace emox
