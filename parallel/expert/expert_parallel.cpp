#include "parallel/expert/expert_parallel.h"

#include <utility>

#include "parallel/expert/exchange_dispatcher.h"
#include "runtime/core/error.h"

namespace emox {

ExpertParallel::ExpertParallel(std::int64_t layers, std::int64_t routed_experts)
    : placement_(ExpertPlacement::block(layers, routed_experts, 1)) {}

ExpertParallel::ExpertParallel(Communicator& group, ExpertPlacement placement, DispatchKind kind)
    : group_(&group), placement_(std::move(placement)), kind_(group.size() == 1 ? DispatchKind::Local : kind) {
  require<UsageError>(group.size() == 1 || kind != DispatchKind::Local,
                      "parallel.dispatch = local needs all experts on every rank, but parallel.expert_parallel is {}; "
                      "use flat or two_level",
                      group.size());
}

std::unique_ptr<TokenDispatcher> ExpertParallel::make_dispatcher(std::int64_t layer, std::int64_t routed_top_k) {
  if (!exchanges()) return make_local_dispatcher(placement_.experts(), routed_top_k, &counters_);
  return make_exchange_dispatcher(kind_, *group_, {placement_, layer, routed_top_k}, staging_, counters_);
}

void ExpertParallel::reserve(Arena& arena, std::int64_t tokens, std::int64_t routed_top_k, std::int64_t width) {
  if (exchanges())
    staging_.reserve(arena, tokens, routed_top_k, width, group_->size(), kind_ == DispatchKind::TwoLevel ? 2 : 1);
}

}  // namespace emox
