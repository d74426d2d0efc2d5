// This process's membership of an MPI job. MPI's own header stays out of it: anyone may include it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "parallel/comm/communicator.h"

namespace emox {

struct MpiWorldOptions {
  double watchdog_s = 0;                      ///< 0: no watchdog
  double io_watchdog_s = 0;                   ///< of a rank in an IoPhase, where that is longer
  int ranks_per_node = 0;                     ///< > 0: simulated nodes of that many ranks; 0: the real ones
  std::size_t max_message = kLongestMessage;  ///< bytes of one message; tests lower it to see the cutting
  std::size_t reduce_piece = kSharePiece;     ///< bytes of one piece of a sum
};

/// Initialises MPI, and finalises it at the end: one object a process, which outlives all communicators. LaunchError
/// (mpi_launcher.h) when a launcher started several ranks that MPI does not join. A rank that
/// leaves it by an exception ends the whole job; to print the exception first, catch it inside and call abort().
class MpiWorld {
 public:
  /// True when a launcher (mpirun, srun) started more than one rank.
  static bool launched_by_mpi();
  /// The ranks that the launcher says it started; 1 without a launcher.
  static int launched_ranks();

  explicit MpiWorld(MpiWorldOptions options = {});
  ~MpiWorld();
  MpiWorld(const MpiWorld&) = delete;
  MpiWorld& operator=(const MpiWorld&) = delete;

  int rank() const;
  int size() const;
  /// All ranks. Collective: every call makes a communicator of its own.
  std::unique_ptr<Communicator> world();
  /// Ends all ranks of the job now; `code` becomes the launcher's exit code.
  [[noreturn]] void abort(int code);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// What the other ranks are about when one has failed.
enum class FailureOf : std::uint8_t {
  NoJob,   ///< there are no others, or they are no processes
  Some,    ///< not all have failed within the time: they have to be ended
  Unlike,  ///< all have, with different errors
  Alike,   ///< all have, with the same: one speaks for all, and the job ends as if it were done
};
/// For a rank that gives up: tells the others (`error` stands for what was wrong) and waits, for `wait_s` seconds at
/// most, whether all of them do. A later call waits on, for the same error.
FailureOf meet_in_failure(std::uint64_t error, double wait_s);

/// Ends the whole job when MPI runs in this process, else only the process. For the last catch of main().
[[noreturn]] void abort_job(int code);

}  // namespace emox
