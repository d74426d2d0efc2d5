// What every rank reads for itself, and must have read alike: recipe, held-out documents, subsets of experts, tables.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "data/loader/heldout.h"
#include "parallel/comm/communicator.h"

namespace emox {

/// Collective. UsageError, on every rank, with the first line that differs, unless `text` is the same on all ranks.
/// `what` names it: "the recipe".
void require_same(Communicator& comm, const std::string& what, const std::string& text);

/// Collective. The same of held-out documents, token by token.
void require_same_held_out(Communicator& comm, const HeldOutSet& set);

/// A line about documents that differs when a token does: their number, tokens and a hash.
std::string digest(std::span<const std::vector<std::int32_t>> documents);

}  // namespace emox
