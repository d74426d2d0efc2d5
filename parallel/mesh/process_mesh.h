// The ranks as a table, expert-parallel x data-parallel: a row holds all experts once, a column holds the same experts.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "parallel/comm/communicator.h"

namespace emox {

class ProcessMesh {
 public:
  /// Collective; `world` must outlive the mesh. UsageError unless world.size() = expert_parallel x a whole number.
  /// Ranks are ordered by (node, rank), so that an expert group fills a node before it spreads; position p has replica
  /// p / expert_parallel and expert coordinate p % expert_parallel.
  ProcessMesh(Communicator& world, std::int64_t expert_parallel);
  /// The mesh of `ranks` that do not run, `ranks_per_node` on each node, as `rank` would see it: for plans. UsageError
  /// as above.
  static ProcessMesh planned(int ranks, std::int64_t expert_parallel, int ranks_per_node, int rank);

  Communicator& world() const { return *world_; }
  /// The ranks of this rank's replica, which together hold all experts, ordered by expert coordinate.
  Communicator& expert() const { return *expert_; }
  /// The ranks that hold the same experts as this rank, ordered by replica.
  Communicator& replicas() const { return *replicas_; }

  int expert_parallel() const { return expert_parallel_; }
  int data_parallel() const { return world_->size() / expert_parallel_; }
  int expert_index() const { return expert_index_of(world_->rank()); }
  int replica_index() const { return replica_index_of(world_->rank()); }
  int expert_index_of(int world_rank) const { return position_of(world_rank) % expert_parallel_; }
  int replica_index_of(int world_rank) const { return position_of(world_rank) / expert_parallel_; }

 private:
  int position_of(int world_rank) const { return positions_[static_cast<std::size_t>(world_rank)]; }
  /// A group that is the world in the world's order is the world itself, one of a single rank needs no transport: so
  /// one rank costs nothing. `own` holds what is made.
  Communicator* group(int ranks, int color, int key, std::unique_ptr<Communicator>& own) const;
  ProcessMesh(std::unique_ptr<Communicator> world, std::int64_t expert_parallel);
  void place_ranks(std::int64_t expert_parallel);

  Communicator* world_;
  int expert_parallel_ = 1;
  std::vector<int> positions_;  // by world rank
  std::unique_ptr<Communicator> own_world_, own_expert_, own_replicas_;
  Communicator* expert_;
  Communicator* replicas_;
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
