// SIGUSR1, SIGUSR2, SIGTERM, SIGINT and SIGHUP ask for a clean end: a flag that loops read (design 4.11).
//
// No handler may run on a thread that computes. oneDNN's sgemm uses the stack pointer as an ordinary register, which
// for a tenth of its time points into the heap: a signal's frame, written where it points, overwrites whatever lies
// there. So the signals are blocked, and a thread that does nothing else waits for them.
#pragma once

#include <csignal>

namespace emox {

/// main's first act, before any other thread exists. The signals above stay pending until a StopSignals object takes
/// them, or let_signals_end() gives them their usual effect. From here on a write to a pipe that nobody reads, or
/// beyond the limit of a file's size, is an error of that write (EPIPE, EFBIG) and does not end the process.
void hold_signals();
/// For commands that keep nothing for a later start: a signal ends them at once, as it ends any program. What they
/// write is put in its place when it is whole, so that nothing half-made stays.
void let_signals_end();

/// "SIGTERM"; "a signal" for one that is not among them.
const char* signal_name(int signal);

/// Receives the signals for the life of the object, or of the outermost one: a command makes one before anything else,
/// so that every thread made later has them blocked, and a signal during start-up is not lost. Destroyed by the thread
/// that made it. A second SIGINT ends the process at once. SIGHUP that is ignored when the process starts (nohup) stays
/// ignored.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;
  /// The signal that arrived, 0 if none; the same for all objects.
  static int received();

 private:
  sigset_t before_;  ///< what this thread had blocked
};

}  // namespace emox
