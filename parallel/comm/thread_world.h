// N ranks as threads of one process: the transport of the tests, which sanitizers can see through. Every collective is
// a shared board and two meetings; nothing hangs when a rank gives up.
#pragma once

#include <memory>
#include <string>

#include "parallel/comm/communicator.h"

namespace emox {

struct ThreadWorldOptions {
  int ranks_per_node = 0;    ///< simulated nodes: ranks [k * n, (k + 1) * n) share node k; 0: all ranks share one
  double watchdog_s = 0;     ///< 0: no watchdog
  double io_watchdog_s = 0;  ///< of a rank in an IoPhase, where that is longer
};

/// Must outlive its communicators.
class ThreadWorld {
 public:
  explicit ThreadWorld(int size, ThreadWorldOptions options = {});
  ~ThreadWorld();
  ThreadWorld(const ThreadWorld&) = delete;
  ThreadWorld& operator=(const ThreadWorld&) = delete;

  int size() const;
  /// The world as `rank` sees it; to be used by one thread. Ask once for every rank.
  std::unique_ptr<Communicator> communicator(int rank);
  /// `rank` gives up: every rank that waits in a collective, or enters one later, throws CommError with this text.
  /// The first call counts. Callable from any thread.
  void abort(int rank, const std::string& message);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace emox
