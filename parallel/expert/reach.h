// Which ranks of an expert group a rank can send rows to, and receive them from, whatever is picked: known when a layer
// is made, from the placement and the nodes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace emox {

/// The other ranks: [ranks], 1 or 0. Only they tell each other how many rows go.
struct Reach {
  std::vector<std::int64_t> to, from;
};

/// Whoever holds an expert is reached by all; `in_node`: by the ranks of its node.
Reach expert_reach(std::span<const std::int32_t> rank_of_expert, const std::vector<int>& nodes, int self, bool in_node);

/// The rank that passes rows on to each expert's node when `self` sends them: [experts]. nodes[ranks].
std::vector<std::int32_t> gateways(std::span<const std::int32_t> rank_of_expert, const std::vector<int>& nodes,
                                   int self);
/// Each rank has one gateway on every node that holds an expert.
Reach gateway_reach(std::span<const std::int32_t> rank_of_expert, const std::vector<int>& nodes, int self);

}  // namespace emox
