// What a dispatch plan counts on the device and the host has to know, so that it can tell the other ranks.
#pragma once

#include <cstdint>

namespace emox {

/// What a plan counts, one after another in one tensor, which the host reads at once. Part: TensorView on the device,
/// span on the host.
template <typename Part>
struct PlanNumbers {
  Part by_rank, by_node;              ///< [ranks, 2], [nodes, 2] rows and picks
  Part rank_limit, node_limit;        ///< [ranks], [nodes] rows that the pools allow
  Part ranks_reached, nodes_reached;  ///< [1] by the documents' pools

  static std::int64_t size(std::int64_t ranks, std::int64_t nodes) { return 3 * (ranks + nodes) + 2; }
  /// `next(n)`: the next n numbers.
  template <typename Next>
  static PlanNumbers of(std::int64_t ranks, std::int64_t nodes, Next&& next) {
    PlanNumbers p;
    p.by_rank = next(2 * ranks), p.by_node = next(2 * nodes);
    p.rank_limit = next(ranks), p.node_limit = next(nodes);
    p.ranks_reached = next(1), p.nodes_reached = next(1);
    return p;
  }
};

}  // namespace emox
