#include "launch/run/sharding.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "launch/run/same_on_ranks.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

std::int64_t checked(const Communicator& world, const ModelConfig& model, const ParallelConfig& parallel) {
  const std::int64_t expert_parallel = resolved(parallel, model, world.nodes()).expert_parallel;
  check_expert_parallel(world.size(), expert_parallel, model.is_moe() ? model.routed_experts() : 0);
  return expert_parallel;
}

}  // namespace

ParallelConfig resolved(ParallelConfig parallel, const ModelConfig& model, const std::vector<int>& nodes) {
  if (parallel.expert_parallel != 0) return parallel;
  const bool shared_out = model.is_moe() && parallel.dispatch != DispatchKind::Local;
  parallel.expert_parallel = shared_out ? auto_expert_parallel(nodes, model.routed_experts()) : 1;
  return parallel;
}

MeshLayout planned_layout(const Recipe& recipe, int ranks, int ranks_per_node) {
  std::vector<int> nodes = nodes_in_order(ranks, ranks_per_node);
  const std::int64_t expert_parallel = resolved(recipe.parallel, recipe.model, nodes).expert_parallel;
  return {std::move(nodes), expert_parallel};
}

ExpertPlacement make_placement(const ModelConfig& model, const ParallelConfig& parallel) {
  const std::int64_t layers = model.layers, experts = model.routed_experts();
  const auto ranks = static_cast<int>(parallel.expert_parallel);
  switch (parallel.placement) {
    case PlacementKind::Random:
      return ExpertPlacement::random(layers, experts, ranks, static_cast<std::uint64_t>(parallel.placement_seed));
    case PlacementKind::File:
      return ExpertPlacement::from_file(parallel.placement_file, layers, experts, ranks);
    case PlacementKind::Block:
      break;
  }
  return ExpertPlacement::block(layers, experts, ranks);
}

Sharding::Sharding(Communicator& world, const ModelConfig& model, const ParallelConfig& parallel)
    : Sharding(ProcessMesh(world, checked(world, model, parallel)), model, parallel) {
  if (experts_ != nullptr && parallel.placement == PlacementKind::File)
    require_same(world, "the table of " + parallel.placement_file, experts_->placement().to_json().dump());
}

Sharding::Sharding(ProcessMesh mesh, const ModelConfig& model, const ParallelConfig& parallel)
    : mesh_(std::move(mesh)) {
  if (model.is_moe())
    experts_ = std::make_unique<ExpertParallel>(
        mesh_.expert(), make_placement(model, resolved(parallel, model, mesh_.world().nodes())), parallel.dispatch);
  if (experts_ != nullptr) experts_->overlap(parallel.overlap_experts);
}

}  // namespace emox
