// Which sequences share a statistic of the load-balance loss, and what a resume says when that changes.
//
// Under moe.balance_scope = step it is the whole batch, whatever the ranks. micro_batch (the reference's) sees the
// sequences that all ranks compute at a time, local those that one rank does: there the objective depends on how many
// ranks there are and on train.micro_batch_sequences (design 4.7).
#pragma once

#include <optional>
#include <string>

#include "launch/config/recipe.h"
#include "parallel/checkpoint/manifest.h"

namespace emox {

/// How a step's sequences are divided over the statistics, largest first: "1 of 12", "2 of 8 and 1 of 4". Empty without
/// a balance loss.
std::string balance_groups(const Recipe& recipe, int ranks);

/// A line for the log of a run whose objective depends on its ranks; empty for all others.
std::string describe_balance_groups(const Recipe& recipe, int ranks);

struct BalanceGroupChange {
  std::string before, now;  ///< balance_groups
};
/// Compares with the run's newest checkpoint, whose recipe is `before`. UsageError when the statistics have other
/// numbers of sequences than there, unless run.change names moe.balance_scope or train.micro_batch_sequences: then the
/// change is returned, to be said and recorded. Nothing when there is none, or when the checkpoint does not say on how
/// many ranks it was trained (a subset).
std::optional<BalanceGroupChange> check_balance_groups(const Manifest& found, const Recipe& before, const Recipe& now,
                                                       int ranks);

}  // namespace emox
