#include "parallel/expert/reach.h"

#include <cstddef>

#include "runtime/core/idx.h"

namespace emox {

Reach expert_reach(std::span<const std::int32_t> rank_of_expert, const std::vector<int>& nodes, int self,
                   bool in_node) {
  const std::size_t ranks = nodes.size(), me = idx(self);
  std::vector<bool> holds(ranks, false);
  for (const std::int32_t r : rank_of_expert) holds[idx(r)] = true;
  Reach reach{std::vector<std::int64_t>(ranks, 0), std::vector<std::int64_t>(ranks, 0)};
  for (std::size_t r = 0; r < ranks; ++r) {
    if (r == me || (in_node && nodes[r] != nodes[me])) continue;
    reach.to[r] = holds[r] ? 1 : 0;
    reach.from[r] = holds[me] ? 1 : 0;
  }
  return reach;
}

Reach gateway_reach(std::span<const std::int32_t> rank_of_expert, const std::vector<int>& nodes, int self) {
  const std::size_t ranks = nodes.size();
  Reach reach{std::vector<std::int64_t>(ranks, 0), std::vector<std::int64_t>(ranks, 0)};
  for (std::size_t r = 0; r < ranks; ++r) {
    const bool is_self = static_cast<int>(r) == self;
    for (const std::int32_t gateway : gateways(rank_of_expert, nodes, static_cast<int>(r))) {
      if (is_self && gateway != self) reach.to[idx(gateway)] = 1;
      if (!is_self && gateway == self) reach.from[r] = 1;
    }
  }
  return reach;
}

std::vector<std::int32_t> gateways(std::span<const std::int32_t> rank_of_expert, const std::vector<int>& nodes,
                                   int self) {
  std::vector<std::vector<std::int32_t>> members(nodes.size());
  std::size_t place = 0;  // of self in its node
  for (std::size_t r = 0; r < nodes.size(); ++r) {
    auto& node = members[idx(nodes[r])];
    if (static_cast<int>(r) == self) place = node.size();
    node.push_back(static_cast<std::int32_t>(r));
  }
  std::vector<std::int32_t> gateway;
  for (const std::int32_t r : rank_of_expert) {
    const auto& node = members[idx(nodes[idx(r)])];
    gateway.push_back(node[place % node.size()]);
  }
  return gateway;
}

}  // namespace emox
