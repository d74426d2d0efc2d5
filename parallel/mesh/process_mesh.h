// A rank's place in the table of ranks (mesh_layout.h), and the communicators of its row and its column.
#pragma once

#include <cstdint>
#include <memory>

#include "parallel/comm/communicator.h"
#include "parallel/mesh/mesh_layout.h"

namespace emox {

class ProcessMesh {
 public:
  /// Collective; `world` must outlive the mesh. UsageError as MeshLayout's.
  ProcessMesh(Communicator& world, std::int64_t expert_parallel);
  /// The mesh of ranks that do not run, as `rank` would see it: for plans.
  static ProcessMesh planned(const MeshLayout& layout, int rank) { return {layout, rank}; }

  const MeshLayout& layout() const { return layout_; }
  Communicator& world() const { return *world_; }
  /// The ranks of layout().expert_group and replica_group.
  Communicator& expert() const { return *expert_; }
  Communicator& replicas() const { return *replicas_; }

  int expert_parallel() const { return layout_.expert_parallel(); }
  int data_parallel() const { return layout_.data_parallel(); }
  int expert_index() const { return layout_.expert_index(world_->rank()); }
  int replica_index() const { return layout_.replica_index(world_->rank()); }

 private:
  ProcessMesh(const MeshLayout& layout, int rank);
  /// On host memory a group that is the world in the world's order is the world itself; one of a single rank needs no
  /// transport: so one rank costs nothing. `own` holds what is made.
  Communicator* group(int ranks, int color, int key, std::unique_ptr<Communicator>& own) const;

  MeshLayout layout_;
  std::unique_ptr<Communicator> own_world_, own_expert_, own_replicas_;
  Communicator* world_;
  Communicator* expert_;
  Communicator* replicas_;
};

}  // namespace emox
