#include "parallel/comm/progress.h"

namespace emox {
namespace {

void note_io(Communicator& comm, bool begins) noexcept {
  if (auto* const watched = dynamic_cast<WatchedRank*>(&comm)) watched->note_io(begins);
}

}  // namespace

void report_progress(Communicator& comm) noexcept {
  if (auto* const watched = dynamic_cast<WatchedRank*>(&comm)) watched->note_progress();
}

IoPhase::IoPhase(Communicator& comm) noexcept : comm_(comm) { note_io(comm_, true); }
IoPhase::~IoPhase() { note_io(comm_, false); }

}  // namespace emox
