// Work that either succeeds on all ranks or fails on all of them, and texts that travel between ranks.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "parallel/comm/communicator.h"

namespace emox {

/// Collective. Runs `work` (which makes no collective calls, and is an IoPhase) on every rank. When it threw on any
/// rank, every rank throws, after all of them are done, an IoError with the first such rank's number and message: an
/// error of fault.h where it was one, a DamagedError only when no rank failed otherwise.
void run_together(Communicator& comm, const std::function<void()>& work);

/// Collective. The ranks' texts, in rank order, on rank 0; nothing on the others, so that their memory does not grow
/// with the number of ranks.
std::vector<std::string> gather_texts(Communicator& comm, const std::string& mine);

/// Collective. Rank 0 has a text for every rank; returns this rank's. `texts` counts on rank 0.
std::string scatter_texts(Communicator& comm, const std::vector<std::string>& texts);

/// Collective. The root's text on every rank.
std::string broadcast_text(Communicator& comm, const std::string& text, int root);

}  // namespace emox
