// What a failing rank says, before anything can keep it from doing so.
#pragma once

#include <exception>
#include <functional>

namespace emox {

/// How emox ends: what scripts and Slurm read.
enum ExitCode : int { kDone = 0, kFailed = 1, kUsage = 2, kTryAgain = 75 };

/// Prints "emox: MESSAGE" on stderr, with rank and place for what is not the user's doing, and returns the exit code: 2
/// for a UsageError, 75 for a TryAgainError, else 1. Prints once: what this thread has said already, when it caught the
/// same exception further in, it does not say again.
int say_failure(const std::exception& error);

/// Runs `body`. What it throws is said at once and thrown on: the destructors of what lives outside of `body` may wait,
/// for a save on a disk that hangs, say. Most errors are the same on all ranks: then rank 0 alone says it; the others
/// wait for half a second whether that is so, and speak then. Nothing is said of what is `expected`, by a caller that
/// catches it.
void saying_why(int rank, const std::function<void()>& body,
                const std::function<bool(const std::exception&)>& expected = {});

/// Whether all ranks of the job have come to their end by an error that was said: it then ends without MPI_Abort.
/// `alike`: by the same one.
struct FailedTogether {
  bool all = false, alike = false;
};
FailedTogether failed_together();

/// Runs the body; an exception becomes "emox: MESSAGE" on stderr and its exit code: 2 for UsageError, 75 for
/// TryAgainError, else 1.
int guarded(const std::function<int()>& body);

/// While it lives, a failure that has been said ends the process at the latest after a minute, however long destructors
/// wait. For processes that end after a failure anyway; one object at a time.
class FailureEndsProcess {
 public:
  FailureEndsProcess();
  ~FailureEndsProcess();
  FailureEndsProcess(const FailureEndsProcess&) = delete;
  FailureEndsProcess& operator=(const FailureEndsProcess&) = delete;
};

}  // namespace emox
