#include "launch/run/ending.h"

#include <fmt/format.h>

namespace emox {

std::string ending_line(const Ending& e, const StopRequest& stop) {
  if (!e.stopped && e.done == e.last) return {};
  if (!e.stopped)
    return fmt::format("stopped after step {} (run.stop_after_step); {} steps are left", e.done, e.last - e.done);
  const std::string where = e.done == e.last    ? "after the last step"
                            : e.done == e.begin ? fmt::format("before step {}, with nothing new to save", e.done + 1)
                                                : fmt::format("after step {}", e.done);
  const std::string command = stop.for_good() ? "remove that file, and the same command" : "the same command";
  const std::string next = e.done == e.last ? e.missing ? command + " makes its evaluation" : "nothing is left to do"
                           : e.missing ? fmt::format("{} evaluates step {} and goes on from there", command, e.done)
                                       : command + " goes on from there";
  return fmt::format("stopped {} {}; {}", stop.why(), where, next);
}

void note_ending(RunStatus& status, const Ending& e, const StopRequest& stop) {
  status.state = e.done == e.last && !e.missing ? RunState::Finished : RunState::Stopped;
  if (status.state == RunState::Finished) return;
  status.reason = e.stopped ? stop.why() : fmt::format("run.stop_after_step = {}", e.stop_after_step);
  status.signal = e.stopped ? stop.signal() : "";
  status.for_good = e.stopped && stop.for_good();
}

}  // namespace emox
