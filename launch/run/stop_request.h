// Why a run is to end before its last step: a signal that reached any rank, or rank 0's clock (run.stop_after_minutes).
#pragma once

#include <string>

#include "launch/run/session.h"

namespace emox {

class StopRequest {
 public:
  /// Minutes count from the start of the process; 0: no limit. The session must outlive this object, and a StopSignals
  /// object must be there while it is used.
  StopRequest(Session& session, double after_minutes) : s_(session), after_minutes_(after_minutes) {}

  /// Whether this rank wants to stop: its vote, nothing to act on alone.
  bool here() const { return reason_here() != 0; }
  /// Collective: whether any rank does. Once true it stays so.
  bool agreed();
  /// "by SIGTERM", "after 90 minutes (run.stop_after_minutes)"; the same on all ranks. After agreed() was true.
  std::string why() const;

 private:
  int reason_here() const;
  Session& s_;
  double after_minutes_;
  int reason_ = 0;  ///< agreed: a signal's number, kTimeUp, or 0
};

}  // namespace emox
