// status.json: what a run is doing, or how it ended, for schedulers' scripts and people who own neither job nor
// terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "runtime/telemetry/log.h"

namespace emox {

enum class RunState : std::uint8_t { Running, Finished, Stopped, Failed };
inline constexpr const char* kRunStateNames[] = {"running", "finished", "stopped", "failed"};

struct RunStatus {
  RunState state = RunState::Running;
  std::int64_t step = 0, steps = 0;  ///< done, and of the whole run
  std::int64_t saved_step = 0;       ///< of the newest checkpoint
  std::string reason;                ///< of an end before the last step: "by SIGUSR1", or the error
  std::string signal;                ///< "SIGUSR1", where that was the reason
  bool for_good = false;             ///< ended by RUN/STOP: not to be started again by itself
  std::string job;                   ///< Slurm's id; empty outside of a job
  int restarts = 0;                  ///< of the job, before this start
  std::string host;                  ///< of rank 0
  std::int64_t pid = 0;              ///< of rank 0
  std::string started, updated;      ///< UTC
  double step_s = 0, save_s = 0;     ///< the longest step, and the newest save with all its writing; 0: none yet

  nlohmann::ordered_json to_json() const;
  /// Nothing for a text that is none.
  static std::optional<RunStatus> from_text(const std::string& text);
  /// The status of a run directory; nothing where there is none that can be read.
  static std::optional<RunStatus> read(const std::filesystem::path& directory);
};

/// Writes it: on rank 0, and on another rank that fails alone. What cannot be written is said once and ends nothing.
class StatusFile {
 public:
  StatusFile(const std::filesystem::path& directory, int rank, Log& log);

  RunStatus status;
  /// Puts it in place whole.
  void write();
  /// The same, if the last time is long enough ago: for every step.
  void refresh();
  /// A rank other than 0 does not write over an end that is there already.
  void failed(const std::string& error);

 private:
  std::filesystem::path path_;
  int rank_;
  Log& log_;
  bool said_ = false;
  std::chrono::steady_clock::time_point written_{};
};

}  // namespace emox
