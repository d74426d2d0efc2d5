// The experts of a model as one rank sees them: who holds which, and how rows get there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <utility>

#include "parallel/comm/communicator.h"
#include "parallel/expert/exchange_staging.h"
#include "parallel/expert/placement.h"
#include "parallel/expert/token_dispatcher.h"

namespace emox {

class ExpertParallel {
 public:
  /// All experts on this rank.
  ExpertParallel(std::int64_t layers, std::int64_t routed_experts);
  /// Sharded over `group`, which must outlive this object. With one rank, or DispatchKind::Local, which needs one rank
  /// (UsageError), nothing is exchanged.
  ExpertParallel(Communicator& group, ExpertPlacement placement, DispatchKind kind);
  ExpertParallel(const ExpertParallel&) = delete;
  ExpertParallel& operator=(const ExpertParallel&) = delete;

  const ExpertPlacement& placement() const { return placement_; }
  int rank() const { return group_ == nullptr ? 0 : group_->rank(); }
  bool exchanges() const { return kind_ != DispatchKind::Local; }
  std::unique_ptr<TokenDispatcher> make_dispatcher(std::int64_t layer, std::int64_t routed_top_k);
  /// Whether rows travel while a device computes; default: they do.
  void overlap(bool on) { staging_.overlap = on; }
  /// Which micro-batch of a step comes next; `again`: its forward pass has run before, with the same picks, so that
  /// what ranks told each other then still holds.
  void begin_micro_batch(std::size_t m, bool again) {
    staging_.micro_batch = m;
    staging_.again = again;
  }
  /// Memory that all layers' transfers share; once, for the largest micro-batch.
  void reserve(Arena& arena, std::int64_t tokens, std::int64_t routed_top_k, std::int64_t width);
  /// Lives around calls that may leave a transfer open: when an exception passes, messages under way stop using the
  /// transfer's memory, which is about to go.
  class TransferGuard {
   public:
    explicit TransferGuard(const ExpertParallel* experts) : group_(experts == nullptr ? nullptr : experts->group_) {}
    ~TransferGuard() {
      if (group_ != nullptr && std::uncaught_exceptions() > exceptions_) group_->all_to_all_v_abandon();
    }
    TransferGuard(const TransferGuard&) = delete;
    TransferGuard& operator=(const TransferGuard&) = delete;

   private:
    Communicator* group_;
    const int exceptions_ = std::uncaught_exceptions();
  };
  /// Summed since the last clear().
  DispatchCounters& counters() { return counters_; }

 private:
  Communicator* group_ = nullptr;
  ExpertPlacement placement_;
  DispatchKind kind_ = DispatchKind::Local;
  ExchangeStaging staging_;
  DispatchCounters counters_;
};

}  // namespace emox
