// How a rank says that it is at work and not stuck, so that the watchdog lets others wait for it (README.md).
#pragma once

#include "parallel/comm/communicator.h"

namespace emox {

/// For work that may last longer than parallel.watchdog_s on one rank while others wait for it in a collective: to be
/// called after every part of it (a document evaluated, a file read). Others wait as long as such reports come faster
/// than watchdog_s. Counts for the rank, whichever of its communicators is given. Takes part in nothing and costs next
/// to nothing; any thread of the rank may call it.
void report_progress(Communicator& comm) noexcept;

/// From now on a collective of this rank may last so many seconds, instead of the watchdog's own limit: for a caller
/// that has measured what is normal. To be called by all ranks alike; without a watchdog nothing happens.
void set_watchdog_limit(Communicator& comm, double seconds) noexcept;

/// For the life of the object this rank reads or writes files, which can take long: it may keep others waiting for
/// parallel.io_watchdog_s since the object was made, since its last report_progress() or since its last collective,
/// whichever was last. Only the rank that works needs one, not those that wait for it. May be nested.
class IoPhase {
 public:
  explicit IoPhase(Communicator& comm) noexcept;
  ~IoPhase();
  IoPhase(const IoPhase&) = delete;
  IoPhase& operator=(const IoPhase&) = delete;

 private:
  Communicator& comm_;
};

}  // namespace emox
