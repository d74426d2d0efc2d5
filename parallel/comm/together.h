// Work that either succeeds on all ranks or fails on all of them, and what ranks tell each other: numbers and texts.
//
// What failed on one rank is thrown on all of them: a UsageError, a TryAgainError and the errors of
// runtime/files/file_error.h as what they are, because somebody tells them apart; all others as an IoError. The message
// stays.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "parallel/comm/communicator.h"

namespace emox {

/// Collective. Runs `work` (which makes no collective calls, and is an IoPhase) on every rank. When it threw on any
/// rank, every rank throws, after all of them are done, what the first such rank threw, with its number before the
/// message; a DamagedError only when no rank failed otherwise.
void run_together(Communicator& comm, const std::function<void()>& work);

/// Collective. Runs `work` (which makes no collective calls, and is an IoPhase) on rank 0, for all. When it threw,
/// every rank throws, with the same message.
void on_root(Communicator& comm, const std::function<void()>& work);

/// Collective. Rank 0's number, or yes or no, on every rank.
std::int64_t value_of_root(Communicator& comm, std::int64_t value);
inline bool root_says(Communicator& comm, bool yes) { return value_of_root(comm, yes ? 1 : 0) != 0; }

/// Collective. The largest of the ranks' numbers, on every rank.
std::int64_t largest_of_ranks(Communicator& comm, std::int64_t value);

/// Collective. The lowest rank that says yes, on every rank; none does: nothing.
std::optional<int> first_rank_with(Communicator& comm, bool yes);

/// Collective. The root's text on every rank.
std::string broadcast_text(Communicator& comm, const std::string& text, int root = 0);

/// Collective. The text of the lowest rank that has one, on every rank; "" where none has.
std::string first_text(Communicator& comm, const std::string& text);

/// Collective. The ranks' texts, in rank order, on rank 0; nothing on the others, so that their memory does not grow
/// with the number of ranks.
std::vector<std::string> gather_texts(Communicator& comm, const std::string& text);

/// Collective. Rank 0 has a text for every rank; returns this rank's. `texts` counts on rank 0.
std::string scatter_texts(Communicator& comm, const std::vector<std::string>& texts);

}  // namespace emox
