// SIGUSR1, SIGTERM and SIGINT ask for a clean end: a flag that the training loop reads once a step (design 4.11).
#pragma once

namespace emox {

/// Installs the handlers for the life of the object. A second SIGINT ends the process at once.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;
  /// The signal that arrived, 0 if none.
  int received() const;
};

}  // namespace emox
