#include "launch/run/sharding.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "launch/run/same_on_ranks.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

std::int64_t checked(const Communicator& world, const ModelConfig& model, const ParallelConfig& parallel) {
  const std::int64_t expert_parallel = resolved(parallel, model, world.nodes()).expert_parallel;
  check_expert_parallel(world.size(), expert_parallel, model.is_moe() ? model.routed_experts() : 0);
  return expert_parallel;
}

/// Whether a copy of the experts spans nodes, with several of its ranks on one: a row then leaves for a node once.
bool by_nodes(std::int64_t expert_parallel, const std::vector<int>& nodes) {
  const auto ranks = static_cast<std::int64_t>(nodes.size());
  if (expert_parallel < 2 || ranks % expert_parallel != 0) return false;  // what does not fit is refused elsewhere
  const MeshLayout mesh(nodes, expert_parallel);
  for (int r = 0; r < mesh.ranks(); ++r) {
    std::vector<int> held = mesh.nodes_of(mesh.expert_group(r));
    std::sort(held.begin(), held.end());
    const auto different = std::unique(held.begin(), held.end()) - held.begin();
    if (different > 1 && different < expert_parallel) return true;
  }
  return false;
}

}  // namespace

ParallelConfig resolved(ParallelConfig parallel, const ModelConfig& model, const std::vector<int>& nodes) {
  if (parallel.expert_parallel == 0) {
    const bool shared_out = model.is_moe() && parallel.dispatch != DispatchKind::Local;
    parallel.expert_parallel = shared_out ? auto_expert_parallel(nodes, model.routed_experts()) : 1;
  }
  if (parallel.dispatch == DispatchKind::Auto)
    parallel.dispatch = by_nodes(parallel.expert_parallel, nodes) ? DispatchKind::TwoLevel : DispatchKind::Flat;
  return parallel;
}

std::string mesh_line(const Recipe& recipe, const std::vector<int>& nodes) {
  const ParallelConfig& asked = recipe.parallel;
  const ParallelConfig known = resolved(asked, recipe.model, nodes);
  const auto ranks = static_cast<std::int64_t>(nodes.size());
  std::string size, way;
  if (asked.expert_parallel == 0) size = " (auto: as many as fit into a node)";
  if (asked.dispatch == DispatchKind::Auto && known.expert_parallel > 1)
    way = known.dispatch == DispatchKind::TwoLevel ? " (auto: experts span nodes)" : " (auto: experts are near)";
  return fmt::format("mesh: experts over {} rank(s){}, {} replica(s); {} placement, {} dispatch{}",
                     known.expert_parallel, size, ranks / known.expert_parallel, kPlacementNames[idx(asked.placement)],
                     kDispatchNames[idx(known.dispatch)], way);
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
  const ParallelConfig known = resolved(parallel, model, mesh_.world().nodes());
  if (model.is_moe())
    experts_ = std::make_unique<ExpertParallel>(mesh_.expert(), make_placement(model, known), known.dispatch);
  if (experts_ != nullptr) experts_->overlap(parallel.overlap_experts);
}

}  // namespace emox
