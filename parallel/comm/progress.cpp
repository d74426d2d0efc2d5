#include "parallel/comm/progress.h"

namespace emox {

void report_progress(Communicator& comm) noexcept {
  if (CollectiveObserver* const observer = comm.observer().get()) observer->note_progress();
}

void set_watchdog_limit(Communicator& comm, double seconds) noexcept {
  if (CollectiveObserver* const observer = comm.observer().get()) observer->set_limit(seconds);
}

IoPhase::IoPhase(Communicator& comm) noexcept : comm_(comm) {
  if (CollectiveObserver* const observer = comm_.observer().get()) observer->note_io(true);
}
IoPhase::~IoPhase() {
  if (CollectiveObserver* const observer = comm_.observer().get()) observer->note_io(false);
}

}  // namespace emox
