#include "parallel/mesh/process_mesh.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <string>
#include <utility>

#include "runtime/core/error.h"

namespace emox {
namespace {

/// "4 or 6"; a number below 1 is left out.
std::string either(std::int64_t below, std::int64_t above) {
  if (below < 1) return std::to_string(above);
  return above < 1 ? std::to_string(below) : fmt::format("{} or {}", below, above);
}

/// The divisors of `ranks` on both sides of a size that does not fit, none above `most`.
std::string nearest_sizes(std::int64_t ranks, std::int64_t size, std::int64_t most) {
  std::int64_t below = 0, above = 0;
  for (std::int64_t d = 1; d <= std::min(ranks, most) && above == 0; ++d) {
    if (ranks % d == 0) (d < size ? below : above) = d;
  }
  return either(below, above);
}

}  // namespace

void check_expert_parallel(std::int64_t ranks, std::int64_t expert_parallel, std::int64_t routed_experts) {
  const std::int64_t most = std::max<std::int64_t>(routed_experts, 1);
  const bool shareable = 1 <= expert_parallel && expert_parallel <= most;
  if (shareable && ranks % expert_parallel == 0) return;
  std::string why, more_ranks;
  if (expert_parallel < 1) {
    why = "it must be at least 1";
  } else if (routed_experts == 0) {
    why = "a dense model has no experts to share";
  } else if (!shareable) {
    why =
        fmt::format("each of {} ranks needs an expert, the model has {} routed ones", expert_parallel, routed_experts);
  } else {
    const std::int64_t below = ranks / expert_parallel * expert_parallel;
    why =
        fmt::format("data_parallel would be {:.4g}", static_cast<double>(ranks) / static_cast<double>(expert_parallel));
    more_ranks = fmt::format(", or start {} ranks for expert_parallel = {}", either(below, below + expert_parallel),
                             expert_parallel);
  }
  fail<UsageError>(
      "parallel.expert_parallel = {} does not fit ranks = expert_parallel x data_parallel, {} = {} x data_parallel: "
      "{}. On {} ranks use expert_parallel = {}{}",
      expert_parallel, ranks, expert_parallel, why, ranks, nearest_sizes(ranks, expert_parallel, most), more_ranks);
}

std::int64_t auto_expert_parallel(const std::vector<int>& nodes, std::int64_t routed_experts) {
  std::map<int, std::int64_t> ranks;
  for (const int node : nodes) ++ranks[node];
  std::int64_t common = 0;
  for (const auto& [node, count] : ranks) common = std::gcd(common, count);
  for (std::int64_t size = std::min(common, routed_experts); size > 1; --size)
    if (common % size == 0) return size;
  return 1;
}

ProcessMesh::ProcessMesh(Communicator& world, std::int64_t expert_parallel) : world_(&world) {
  place_ranks(expert_parallel);
  expert_ = group(expert_parallel_, replica_index(), expert_index(), own_expert_);
  replicas_ = group(data_parallel(), expert_index(), replica_index(), own_replicas_);
}

ProcessMesh::ProcessMesh(std::unique_ptr<Communicator> world, std::int64_t expert_parallel)
    : world_(world.get()), own_world_(std::move(world)) {
  place_ranks(expert_parallel);
  std::vector<int> expert_nodes(static_cast<std::size_t>(expert_parallel_)),
      replica_nodes(static_cast<std::size_t>(data_parallel()));
  for (int r = 0; r < world_->size(); ++r) {
    const int node = world_->nodes()[static_cast<std::size_t>(r)];
    if (replica_index_of(r) == replica_index()) expert_nodes[static_cast<std::size_t>(expert_index_of(r))] = node;
    if (expert_index_of(r) == expert_index()) replica_nodes[static_cast<std::size_t>(replica_index_of(r))] = node;
  }
  own_expert_ = make_planned_communicator(expert_index(), expert_nodes);
  own_replicas_ = make_planned_communicator(replica_index(), replica_nodes);
  expert_ = own_expert_.get();
  replicas_ = own_replicas_.get();
}

ProcessMesh ProcessMesh::planned(int ranks, std::int64_t expert_parallel, int ranks_per_node, int rank) {
  std::vector<int> nodes;
  for (int r = 0; r < ranks; ++r) nodes.push_back(r / ranks_per_node);
  return {make_planned_communicator(rank, nodes), expert_parallel};
}

void ProcessMesh::place_ranks(std::int64_t expert_parallel) {
  // How many experts there are is the model's to check.
  check_expert_parallel(world_->size(), expert_parallel, std::max<std::int64_t>(world_->size(), expert_parallel));
  expert_parallel_ = static_cast<int>(expert_parallel);
  positions_.resize(static_cast<std::size_t>(world_->size()));
  std::vector<int> ranks(positions_.size());
  std::iota(ranks.begin(), ranks.end(), 0);
  std::stable_sort(ranks.begin(), ranks.end(), [&nodes = world_->nodes()](int a, int b) {
    return nodes[static_cast<std::size_t>(a)] < nodes[static_cast<std::size_t>(b)];
  });
  for (int p = 0; p < world_->size(); ++p) positions_[static_cast<std::size_t>(ranks[static_cast<std::size_t>(p)])] = p;
}

Communicator* ProcessMesh::group(int ranks, int color, int key, std::unique_ptr<Communicator>& own) const {
  if (ranks == world_->size() && std::is_sorted(positions_.begin(), positions_.end())) return world_;
  own = ranks == 1 ? make_self_communicator() : world_->split(color, key);
  return own.get();
}

}  // namespace emox
