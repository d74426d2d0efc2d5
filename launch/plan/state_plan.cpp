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
#include "parallel/checkpoint/hdf5_file.h"
#include "parallel/checkpoint/layout.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

/// What one rank sees: its part of the model, without its memory.
struct PlannedRank {
  PlannedRank(const Recipe& recipe, const MeshLayout& layout, int rank)
      : sharding(ProcessMesh::planned(layout, rank), recipe.model, recipe.parallel),
        model(recipe.model, ctx, true, sharding.experts()),
        shards(model.parameters(), sharding.mesh()) {}
  Context ctx;
  Sharding sharding;
  LanguageModel model;
  ParameterShards shards;
};

class Planner {
 public:
  Planner(const Recipe& recipe, int ranks, int ranks_per_node, DType weights)
      : recipe_(recipe),
        layout_(planned_layout(recipe, ranks, ranks_per_node)),
        weight_bytes_(size_of(weights)),
        bytes_(idx(ranks), 0) {
    plan_.ranks = ranks, plan_.ranks_per_node = ranks_per_node;
    plan_.expert_parallel = layout_.expert_parallel();
  }

  StatePlan plan() {
    const MemoryMeasurement without_memory;
    plan_.manifest.world_size = layout_.ranks();
    for (int e = 0; e < plan_.expert_parallel; ++e) {
      const int first = layout_.rank_at(0, e);
      const PlannedRank rank(recipe_, layout_, first);
      if (e == 0) add_pieces(rank, 0, [](int owner) { return owner; });
      add_pieces(rank, 1, [&](int owner) { return layout_.rank_at(owner, e); });
      if (e == 0 || e + 1 == plan_.expert_parallel) count_traffic(rank.shards, first);
    }
    for (int r = 0; r < layout_.ranks(); ++r)
      plan_.manifest.files.push_back({shard_file_name(r, layout_.ranks()), bytes_[idx(r)], std::string(32, '0')});
    plan_.manifest.files.push_back({kIndexFileName, 0, std::string(32, '0')});
    std::sort(plan_.manifest.tensors.begin(), plan_.manifest.tensors.end(), [](const auto& a, const auto& b) {
      return std::tie(a.name, a.role, a.begin) < std::tie(b.name, b.role, b.begin);
    });
    return std::move(plan_);
  }

 private:
  template <typename RankOf>
  void add_pieces(const PlannedRank& rank, std::size_t group, const RankOf& rank_of) {
    for (const ParameterShards::Piece& p : rank.shards.pieces(group))
      for (const char* role : {"weight", "exp_avg", "exp_avg_sq"}) {
        const int writer = rank_of(p.owner);
        const ParameterSlot& slot = p.parameter->slot;
        ManifestTensor t{p.parameter->name,   role, DType::F32, slot.shape, p.begin - slot.offset,
                         p.end - slot.offset, {},   {},         {}};
        t.file = shard_file_name(writer, layout_.ranks());
        t.dataset = dataset_path(t.name, t.role);
        t.checksum = std::string(32, '0');
        std::int64_t& bytes = bytes_[idx(writer)];
        t.offset = std::exchange(bytes, bytes + bytes_of(t));
        plan_.manifest.tensors.push_back(std::move(t));
      }
  }

  void count_traffic(const ParameterShards& shards, int rank) {
    Traffic sum, gather;
    const auto count = [&](std::size_t group, const std::vector<int>& nodes, int place) {
      const auto& ranges = shards.groups()[group].shards.ranges();
      if (nodes.size() == 1) return;
      sum += traffic_of_sum(ranges, nodes, place, sizeof(float), sizeof(float));
      gather += traffic_of_gather(ranges, nodes, place, weight_bytes_);
    };
    count(0, layout_.nodes(), rank);
    count(1, layout_.nodes_of(layout_.replica_group(rank)), layout_.replica_index(rank));
    if (layout_.expert_index(rank) != 0 && sum.bytes_inter_node <= plan_.gradients.bytes_inter_node) return;
    plan_.gradients = sum, plan_.weights = gather;
  }

  Recipe recipe_;
  MeshLayout layout_;
  std::size_t weight_bytes_;         ///< of an element
  std::vector<std::int64_t> bytes_;  ///< of each rank's shard
  StatePlan plan_;
};

}  // namespace

StatePlan plan_state(const Recipe& recipe, int ranks, int ranks_per_node, DType activations) {
  recipe.validate(ranks);
  return Planner(recipe, ranks, ranks_per_node, activations).plan();
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
