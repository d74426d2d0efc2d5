// The ranks as a table, expert-parallel x data-parallel: a row holds all experts once, a column holds the same experts.
// In integers, for jobs as for plans of jobs that do not run.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/core/idx.h"

namespace emox {

/// The node of each rank where the ranks fill one node of `ranks_per_node` after another.
std::vector<int> nodes_in_order(int ranks, int ranks_per_node);

class MeshLayout {
 public:
  /// nodes[ranks]: the node of each rank of the world. UsageError unless ranks = expert_parallel x a whole number.
  /// Ranks are ordered by (node, rank), so that an expert group fills a node before it spreads; position p has replica
  /// p / expert_parallel and expert coordinate p % expert_parallel.
  MeshLayout(std::vector<int> nodes, std::int64_t expert_parallel);

  int ranks() const { return static_cast<int>(nodes_.size()); }
  int expert_parallel() const { return expert_parallel_; }
  int data_parallel() const { return ranks() / expert_parallel_; }
  const std::vector<int>& nodes() const { return nodes_; }

  int expert_index(int rank) const { return position_of(rank) % expert_parallel_; }
  int replica_index(int rank) const { return position_of(rank) / expert_parallel_; }
  int rank_at(int replica_index, int expert_index) const {
    return order_[idx(replica_index * expert_parallel_ + expert_index)];
  }
  /// The ranks of this rank's replica, which together hold all experts, ordered by expert coordinate.
  std::vector<int> expert_group(int rank) const;
  /// The ranks that hold the same experts as this rank, ordered by replica.
  std::vector<int> replica_group(int rank) const;
  /// The node of each of these ranks, numbered as their communicator does (Communicator::nodes): from 0 on.
  std::vector<int> nodes_of(const std::vector<int>& ranks) const;
  /// Whether the ranks stand in the table in their own order.
  bool in_order() const;

 private:
  int position_of(int rank) const { return positions_[idx(rank)]; }

  std::vector<int> nodes_;  // by rank
  int expert_parallel_ = 1;
  std::vector<int> order_;      // the rank at each position
  std::vector<int> positions_;  // by rank
};

/// UsageError unless ranks = expert_parallel x data_parallel has a whole solution and 1 <= expert_parallel <= routed
/// experts (1 for a dense model, routed_experts = 0). Its message names the nearest sizes and numbers of ranks that
/// fit.
void check_expert_parallel(std::int64_t ranks, std::int64_t expert_parallel, std::int64_t routed_experts);

/// What parallel.expert_parallel = auto means: as many ranks as can share the experts without leaving a node, the
/// largest number that divides the ranks of every node and is at most `routed_experts` (1 for a dense model, 0
/// experts). nodes[ranks]: the node of each rank.
std::int64_t auto_expert_parallel(const std::vector<int>& nodes, std::int64_t routed_experts);

}  // namespace emox
