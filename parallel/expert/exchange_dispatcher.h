// Dispatch to experts on other ranks: in one hop (flat), or by way of the nodes (two-level).
//
// Two-level sends a row once to each destination node, to the rank there with the sender's place in its own node, which
// passes it on to the ranks of the node; on the way back the node's rows are added up before they leave it.
#pragma once

#include <cstdint>
#include <memory>

#include "parallel/comm/communicator.h"
#include "parallel/expert/exchange_staging.h"
#include "parallel/expert/placement.h"
#include "parallel/expert/token_dispatcher.h"

namespace emox {

/// The layer whose rows travel.
struct ExchangeLayer {
  const ExpertPlacement& placement;
  std::int64_t row;  ///< the placement's
  std::int64_t routed_top_k;
};

/// `expert_group`: the ranks that together hold all experts, in the placement's order. `staging` and `counters` may be
/// shared by all layers. Everything referred to must outlive the dispatcher.
std::unique_ptr<TokenDispatcher> make_exchange_dispatcher(DispatchKind kind, Communicator& expert_group,
                                                          const ExchangeLayer& layer, ExchangeStaging& staging,
                                                          DispatchCounters& counters);

}  // namespace emox
