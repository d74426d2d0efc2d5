// Runs a command's body on all ranks of the job and turns what goes wrong on any of them into one message and one exit
// code.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "launch/config/recipe.h"
#include "launch/run/session.h"

namespace emox {

/// Returns the body's exit code; a body that returns another than 0 does so after its last collective. An exception on
/// one rank is printed there and ends the whole job with exit code 1, 2 for a UsageError, 75 for a TryAgainError, also
/// when the other ranks wait in a collective (design 4.11).
int on_ranks(const SessionSetup& setup, const std::function<int(Session&)>& body);
/// For commands that read a recipe only when the ranks are there: what `overrides` say of parallel.* and train.threads
/// counts from the start, such as the watchdog's limit; UsageError for one that cannot be read.
int on_ranks(const std::vector<std::string>& overrides, const std::function<int(Session&)>& body);

}  // namespace emox
