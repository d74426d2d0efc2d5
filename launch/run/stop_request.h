// Why a run is to end before its last step: a signal that reached any rank, rank 0's clock (run.stop_after_minutes), or
// a file that somebody made (RUN/STOP), who need not own the job.
#pragma once

#include <chrono>
#include <filesystem>
#include <string>
#include <vector>

#include "launch/run/session.h"

namespace emox {

class StopRequest {
 public:
  /// Minutes count from the start of the process; 0: no limit. `files`: rank 0 looks for them about once a second. The
  /// session must outlive this object, and a StopSignals object must be there while it is used.
  StopRequest(Session& session, double after_minutes, std::vector<std::filesystem::path> files = {})
      : s_(session), after_minutes_(after_minutes), files_(std::move(files)) {}

  /// Whether this rank wants to stop: its vote, nothing to act on alone.
  bool here() const { return reason_here() != 0; }
  /// Collective: whether any rank does. Once true it stays so.
  bool agreed();
  /// "by SIGTERM", "after 90 minutes (run.stop_after_minutes)"; the same on all ranks. After agreed() was true.
  std::string why() const;
  /// "SIGTERM"; empty: by no signal. After agreed() was true.
  std::string signal() const;
  /// By a file: the same command ends again while it is there.
  bool for_good() const;

 private:
  int reason_here() const;
  bool file_is_there() const;
  std::string files_text() const;
  Session& s_;
  double after_minutes_;
  std::vector<std::filesystem::path> files_;
  mutable std::filesystem::path seen_;  ///< on rank 0; once seen it counts, whatever becomes of it
  mutable std::chrono::steady_clock::time_point looked_{};
  int reason_ = 0;  ///< agreed: a signal's number, kTimeUp, kFile, or 0
};

}  // namespace emox
