// How a run ended, in words and in its status.
#pragma once

#include <cstdint>
#include <string>

#include "launch/run/run_status.h"
#include "launch/run/stop_request.h"

namespace emox {

struct Ending {
  std::int64_t begin = 0, done = 0, last = 0;  ///< steps: before this start, now, of the whole run
  bool stopped = false;                        ///< by what `stop` says, else the last step or run.stop_after_step
  bool missing = false;                        ///< an evaluation of step `done` is still to be made
  std::int64_t stop_after_step = 0;            ///< run.stop_after_step
};

/// For the log; empty: nothing is to be said.
std::string ending_line(const Ending& ending, const StopRequest& stop);
void note_ending(RunStatus& status, const Ending& ending, const StopRequest& stop);

}  // namespace emox
