#include "launch/plan/state_plan.h"

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <tuple>
#include <utility>

#include "launch/run/sharding.h"
#include "model/optim/parameter_shards.h"
#include "model/transformer/language_model.h"
#include "parallel/checkpoint/index_file.h"
#include "parallel/checkpoint/layout.h"

namespace emox {
namespace {

/// What one rank sees: its part of the model, without its memory.
struct PlannedRank {
  PlannedRank(const Recipe& recipe, int ranks, std::int64_t expert_parallel, int ranks_per_node, int rank)
      : sharding(ProcessMesh::planned(ranks, expert_parallel, ranks_per_node, rank), recipe.model, recipe.parallel),
        model(recipe.model, ctx, true, sharding.experts()),
        shards(model.parameters(), sharding.mesh()) {}
  Context ctx;
  Sharding sharding;
  LanguageModel model;
  ParameterShards shards;
};

class Planner {
 public:
  Planner(const Recipe& recipe, int ranks, int ranks_per_node) : recipe_(recipe), ranks_(ranks), bytes_(ranks_of(), 0) {
    for (int r = 0; r < ranks; ++r) nodes_.push_back(r / ranks_per_node);
    plan_.ranks = ranks, plan_.ranks_per_node = ranks_per_node;
    plan_.expert_parallel = static_cast<int>(resolved(recipe.parallel, recipe.model, nodes_).expert_parallel);
  }

  StatePlan plan() {
    const MemoryMeasurement without_memory;
    plan_.manifest.world_size = ranks_;
    for (int e = 0; e < plan_.expert_parallel; ++e) {
      // Positions in the mesh are by (node, rank), which is the order of the ranks here.
      PlannedRank rank(recipe_, ranks_, plan_.expert_parallel, plan_.ranks_per_node, e);
      if (e == 0) add_pieces(rank, 0, [](int owner) { return owner; });
      add_pieces(rank, 1, [&](int owner) { return owner * plan_.expert_parallel + e; });
      if (e == 0 || e + 1 == plan_.expert_parallel) count_traffic(rank, e);
    }
    for (int r = 0; r < ranks_; ++r)
      plan_.manifest.files.push_back(
          {shard_file_name(r, ranks_), bytes_[static_cast<std::size_t>(r)], std::string(32, '0')});
    plan_.manifest.files.push_back({kIndexFileName, 0, std::string(32, '0')});
    std::sort(plan_.manifest.tensors.begin(), plan_.manifest.tensors.end(), [](const auto& a, const auto& b) {
      return std::tie(a.name, a.role, a.begin) < std::tie(b.name, b.role, b.begin);
    });
    return std::move(plan_);
  }

 private:
  std::size_t ranks_of() const { return static_cast<std::size_t>(ranks_); }

  template <typename RankOf>
  void add_pieces(const PlannedRank& rank, std::size_t group, const RankOf& rank_of) {
    for (const ParameterShards::Piece& p : rank.shards.pieces(group))
      for (const char* role : {"weight", "exp_avg", "exp_avg_sq"}) {
        const int writer = rank_of(p.owner);
        const ParameterSlot& slot = p.parameter->slot;
        ManifestTensor t{p.parameter->name,   role, DType::F32, slot.shape, p.begin - slot.offset,
                         p.end - slot.offset, {},   {},         {}};
        t.file = shard_file_name(writer, ranks_);
        t.dataset = dataset_path(t.name, t.role);
        t.checksum = std::string(32, '0');
        std::int64_t& bytes = bytes_[static_cast<std::size_t>(writer)];
        t.offset = std::exchange(bytes, bytes + bytes_of(t));
        plan_.manifest.tensors.push_back(std::move(t));
      }
  }

  void count_traffic(PlannedRank& rank, int world_rank) {
    Traffic sum, gather;
    const ProcessMesh& mesh = rank.sharding.mesh();
    const auto count = [&](std::size_t group, const Communicator& members) {
      const auto& ranges = rank.shards.groups()[group].shards.ranges();
      if (members.size() == 1) return;
      sum += traffic_of_sum(ranges, members.nodes(), members.rank(), sizeof(float), sizeof(float));
      gather += traffic_of_gather(ranges, members.nodes(), members.rank(), sizeof(float));
    };
    count(0, mesh.world());
    count(1, mesh.replicas());
    if (world_rank != 0 && sum.bytes_inter_node <= plan_.gradients.bytes_inter_node) return;
    plan_.gradients = sum, plan_.weights = gather;
  }

  Recipe recipe_;
  int ranks_;
  std::vector<int> nodes_;
  std::vector<std::int64_t> bytes_;  ///< of each rank's shard
  StatePlan plan_;
};

}  // namespace

StatePlan plan_state(const Recipe& recipe, int ranks, int ranks_per_node) {
  recipe.validate(ranks);
  return Planner(recipe, ranks, ranks_per_node).plan();
}

nlohmann::ordered_json to_json(const Traffic& t) {
  return {{"messages_intra_node", t.messages_intra_node},
          {"bytes_intra_node", t.bytes_intra_node},
          {"messages_inter_node", t.messages_inter_node},
          {"bytes_inter_node", t.bytes_inter_node}};
}

nlohmann::ordered_json to_json(const StatePlan& plan) {
  std::int64_t bytes = 0;
  for (const ManifestFile& f : plan.manifest.files) bytes += f.bytes;
  return {{"pieces", plan.manifest.tensors.size()},
          {"files", plan.manifest.files.size()},
          {"manifest_bytes", manifest_text(plan.manifest).size()},
          {"checkpoint_bytes", bytes},
          {"gradients", to_json(plan.gradients)},
          {"weights", to_json(plan.weights)}};
}

}  // namespace emox
