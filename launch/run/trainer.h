// A training run from its recipe to its last checkpoint (design sections 2, 4.11 and 5).
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "launch/config/recipe.h"
#include "launch/run/lease.h"
#include "launch/run/profile_steps.h"
#include "launch/run/progress.h"
#include "launch/run/run_start.h"
#include "launch/run/session.h"

namespace emox {

/// What a run leaves besides its directory; empty: nothing.
struct TrainOptions {
  std::string trace;         ///< file of the timeline (trace.h)
  std::string record_pools;  ///< file of the pools and picks of all layers (pool_trace.h)
  LeaseTiming lease = {};    ///< of the run directory (lease.h); tests shorten it
  RateGiven rate = RateGiven::Yes;
  bool force = false;        ///< replace the files above where they are there already (recordings.h)
  bool may_diverge = false;  ///< DivergedError is a result for the caller: nothing is printed, the process goes on
  StepRange profile = {};    ///< steps that the profiler of a GPU watches (profile_steps.h)
  std::filesystem::path stop_file = {};  ///< ends the run for good, besides its own RUN/STOP
  /// What the parts of a run take, for the message when the memory does not last.
  std::function<std::string()> memory_plan = {};
  RunOfMany among = {};  ///< what the progress line says of the runs that this one is among
  /// Where relative paths of sources are looked for after the working directory: where the recipe is.
  std::vector<std::filesystem::path> look_in = {};
};

/// Starts or resumes the run of recipe.run.dir on the session's ranks. Returns when the last step is done, when
/// run.stop_after_step is reached, or one step after a stop signal; the state is saved in all three cases. UsageError
/// before anything else if a file of the options cannot be written, or run.dir is no run's; TryAgainError, before
/// anything in the directory is touched, while another job has it. DivergedError, on every rank, when a loss or a
/// gradient's norm is not finite; it says what to do.
void train(Session& session, const Recipe& recipe, const std::vector<std::string>& command,
           const TrainOptions& options = {});

}  // namespace emox
