// What [parallel] of a recipe makes of the ranks: the mesh, and where the experts are.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "launch/config/recipe.h"
#include "parallel/expert/expert_parallel.h"
#include "parallel/mesh/process_mesh.h"

namespace emox {

/// The same with parallel.expert_parallel and parallel.dispatch = auto worked out for ranks on these nodes
/// (nodes[ranks]): experts inside a node where they fit, and by way of the nodes where a copy of them spans several.
ParallelConfig resolved(ParallelConfig parallel, const ModelConfig& model, const std::vector<int>& nodes);

/// "mesh: experts over 8 rank(s) (auto: ...), ...": what was chosen for ranks on these nodes, and why.
std::string mesh_line(const Recipe& recipe, const std::vector<int>& nodes);

/// The table of ranks that do not run, which fill one node of `ranks_per_node` after another. UsageError when the
/// recipe does not fit them.
MeshLayout planned_layout(const Recipe& recipe, int ranks, int ranks_per_node);

ExpertPlacement make_placement(const ModelConfig& model, const ParallelConfig& parallel);

class Sharding {
 public:
  /// Collective. UsageError when the mesh or the placement does not fit the ranks or the model.
  Sharding(Communicator& world, const ModelConfig& model, const ParallelConfig& parallel);
  /// On a mesh that is there already, or only planned.
  Sharding(ProcessMesh mesh, const ModelConfig& model, const ParallelConfig& parallel);

  ProcessMesh& mesh() { return mesh_; }
  /// Null for a dense model.
  ExpertParallel* experts() { return experts_.get(); }

 private:
  ProcessMesh mesh_;
  std::unique_ptr<ExpertParallel> experts_;
};

}  // namespace emox
