// SIGUSR1, SIGTERM and SIGINT ask for a clean end: a flag that the training loop reads once a step (design 4.11).
//
// No handler may run on a thread that computes. oneDNN's sgemm uses the stack pointer as an ordinary register, which
// for a tenth of its time points into the heap: a signal's frame, written where it points, overwrites whatever lies
// there. So the signals are blocked, and a thread that does nothing else waits for them.
#pragma once

#include <csignal>

namespace emox {

/// Receives the signals for the life of the object, or of the outermost one: a command makes one before anything else,
/// so that every thread made later has them blocked, and a signal during start-up is not lost. Destroyed by the thread
/// that made it. A second SIGINT ends the process at once.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;
  /// The signal that arrived, 0 if none.
  int received() const;

 private:
  sigset_t before_;  ///< what this thread had blocked
};

}  // namespace emox
