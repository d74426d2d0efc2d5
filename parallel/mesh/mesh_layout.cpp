#include "parallel/mesh/mesh_layout.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <string>
#include <utility>

#include "parallel/comm/layout.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"

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

std::vector<int> nodes_in_order(int ranks, int ranks_per_node) {
  std::vector<int> nodes;
  for (int r = 0; r < ranks; ++r) nodes.push_back(r / ranks_per_node);
  return nodes;
}

MeshLayout::MeshLayout(std::vector<int> nodes, std::int64_t expert_parallel)
    : nodes_(std::move(nodes)), order_(nodes_.size()), positions_(nodes_.size()) {
  // How many experts there are is the model's to check.
  check_expert_parallel(ranks(), expert_parallel, std::max<std::int64_t>(ranks(), expert_parallel));
  expert_parallel_ = static_cast<int>(expert_parallel);
  std::iota(order_.begin(), order_.end(), 0);
  std::stable_sort(order_.begin(), order_.end(), [&](int a, int b) { return nodes_[idx(a)] < nodes_[idx(b)]; });
  for (int p = 0; p < ranks(); ++p) positions_[idx(order_[idx(p)])] = p;
}

std::vector<int> MeshLayout::expert_group(int rank) const {
  std::vector<int> group;
  for (int e = 0; e < expert_parallel_; ++e) group.push_back(rank_at(replica_index(rank), e));
  return group;
}

std::vector<int> MeshLayout::replica_group(int rank) const {
  std::vector<int> group;
  for (int r = 0; r < data_parallel(); ++r) group.push_back(rank_at(r, expert_index(rank)));
  return group;
}

std::vector<int> MeshLayout::nodes_of(const std::vector<int>& ranks) const {
  std::vector<int> nodes;
  for (const int r : ranks) nodes.push_back(nodes_[idx(r)]);
  return number_nodes(nodes);
}

bool MeshLayout::in_order() const { return std::is_sorted(order_.begin(), order_.end()); }

}  // namespace emox
