#include "parallel/mesh/process_mesh.h"

namespace emox {

ProcessMesh::ProcessMesh(Communicator& world, std::int64_t expert_parallel)
    : layout_(world.nodes(), expert_parallel), world_(&world) {
  expert_ = group(this->expert_parallel(), replica_index(), expert_index(), own_expert_);
  replicas_ = group(data_parallel(), expert_index(), replica_index(), own_replicas_);
}

ProcessMesh::ProcessMesh(const MeshLayout& layout, int rank)
    : layout_(layout),
      own_world_(make_planned_communicator(rank, layout.nodes())),
      own_expert_(make_planned_communicator(layout.expert_index(rank), layout.nodes_of(layout.expert_group(rank)))),
      own_replicas_(make_planned_communicator(layout.replica_index(rank), layout.nodes_of(layout.replica_group(rank)))),
      world_(own_world_.get()),
      expert_(own_expert_.get()),
      replicas_(own_replicas_.get()) {}

Communicator* ProcessMesh::group(int ranks, int color, int key, std::unique_ptr<Communicator>& own) const {
  // On devices rows and gradients travel at a time, each over a communicator with a queue of its own.
  if (ranks == world_->size() && layout_.in_order() && (ranks == 1 || world_->queue() == nullptr)) return world_;
  own = ranks == 1 ? make_self_communicator() : world_->split(color, key);
  return own.get();
}

}  // namespace emox
