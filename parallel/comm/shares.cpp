#include "parallel/comm/shares.h"

#include <algorithm>

#include "runtime/core/idx.h"

namespace emox {
namespace {

/// Ranks by node and place on it.
struct Grid {
  std::vector<std::vector<int>> ranks;  ///< [nodes][places], in rank order
  std::vector<int> place;               ///< by rank
};

Grid grid_of(std::span<const int> nodes) {
  Grid grid;
  for (std::size_t r = 0; r < nodes.size(); ++r) {
    const auto node = idx(nodes[r]);
    if (grid.ranks.size() <= node) grid.ranks.resize(node + 1);
    grid.place.push_back(static_cast<int>(grid.ranks[node].size()));
    grid.ranks[node].push_back(static_cast<int>(r));
  }
  return grid;
}

bool same_node(std::span<const int> nodes, int a, int b) { return nodes[idx(a)] == nodes[idx(b)]; }

std::size_t index_in(const std::vector<int>& members, int rank) {
  return idx(std::find(members.begin(), members.end(), rank) - members.begin());
}

/// Inside `rank`'s node: a member has what the ranks at its place of any node own.
ShareStage node_stage(std::span<const RowRange> ranges, std::span<const int> nodes, const Grid& grid, int rank) {
  ShareStage stage;
  stage.members = grid.ranks[idx(nodes[idx(rank)])];
  stage.self = index_in(stage.members, rank);
  stage.parts.resize(stage.members.size());
  for (const RowRange& range : ranges) stage.parts[idx(grid.place[idx(range.owner)])].push_back(range);
  return stage;
}

/// Among the ranks at `rank`'s place of each node: a member has its own rows.
ShareStage place_stage(std::span<const RowRange> ranges, std::span<const int> nodes, const Grid& grid, int rank) {
  const int place = grid.place[idx(rank)];
  ShareStage stage;
  for (const auto& node : grid.ranks) stage.members.push_back(node[idx(place)]);
  stage.self = index_in(stage.members, rank);
  stage.parts.resize(stage.members.size());
  for (const RowRange& range : ranges) {
    const auto owner = idx(range.owner);
    if (grid.place[owner] == place) stage.parts[idx(nodes[owner])].push_back(range);
  }
  return stage;
}

}  // namespace

std::vector<RowRange> ranges_of(std::span<const std::int64_t> cuts) {
  std::vector<RowRange> ranges;
  for (std::size_t r = 0; r + 1 < cuts.size(); ++r)
    if (cuts[r] != cuts[r + 1]) ranges.push_back({cuts[r], cuts[r + 1], static_cast<int>(r)});
  return ranges;
}

bool adds_up_nodes(std::span<const int> nodes) {
  const Grid grid = grid_of(nodes);
  const std::size_t places = grid.ranks.empty() ? 0 : grid.ranks.front().size();
  return grid.ranks.size() > 1 && places > 1 &&
         std::all_of(grid.ranks.begin(), grid.ranks.end(), [&](const auto& node) { return node.size() == places; });
}

ShareStage flat_stage(std::span<const RowRange> ranges, std::size_t ranks, int rank) {
  ShareStage stage;
  for (std::size_t r = 0; r < ranks; ++r) stage.members.push_back(static_cast<int>(r));
  stage.self = idx(rank);
  stage.parts.resize(ranks);
  for (const RowRange& range : ranges) stage.parts[idx(range.owner)].push_back(range);
  return stage;
}

std::vector<ShareStage> sum_stages(std::span<const RowRange> ranges, std::span<const int> nodes, int rank) {
  if (!adds_up_nodes(nodes)) return {flat_stage(ranges, nodes.size(), rank)};
  const Grid grid = grid_of(nodes);
  return {node_stage(ranges, nodes, grid, rank), place_stage(ranges, nodes, grid, rank)};
}

std::vector<ShareStage> gather_stages(std::span<const RowRange> ranges, std::span<const int> nodes, int rank) {
  std::vector<ShareStage> stages = sum_stages(ranges, nodes, rank);
  std::reverse(stages.begin(), stages.end());
  return stages;
}

std::vector<SharePiece> pieces_of(std::span<const RowRange> part, std::size_t row_bytes, std::size_t item,
                                  std::size_t piece) {
  const std::size_t most = std::max<std::size_t>(piece / item, 1) * item;
  std::vector<SharePiece> pieces;
  for (const RowRange& range : part) {
    const std::size_t end = idx(range.end) * row_bytes;
    for (std::size_t at = idx(range.begin) * row_bytes; at < end; at += most)
      pieces.push_back({at, std::min(most, end - at)});
  }
  return pieces;
}

void Traffic::add(bool same_node, std::size_t bytes) {
  (same_node ? messages_intra_node : messages_inter_node) += 1;
  (same_node ? bytes_intra_node : bytes_inter_node) += static_cast<std::int64_t>(bytes);
}

Traffic& Traffic::operator+=(const Traffic& other) {
  messages_intra_node += other.messages_intra_node, bytes_intra_node += other.bytes_intra_node;
  messages_inter_node += other.messages_inter_node, bytes_inter_node += other.bytes_inter_node;
  return *this;
}

Traffic& Traffic::operator-=(const Traffic& other) {
  messages_intra_node -= other.messages_intra_node, bytes_intra_node -= other.bytes_intra_node;
  messages_inter_node -= other.messages_inter_node, bytes_inter_node -= other.bytes_inter_node;
  return *this;
}

Traffic traffic_of_sum(std::span<const RowRange> ranges, std::span<const int> nodes, int rank, std::size_t row_bytes,
                       std::size_t item, std::size_t piece) {
  Traffic traffic;
  for (const ShareStage& stage : sum_stages(ranges, nodes, rank)) {
    const std::vector<SharePiece> own = pieces_of(stage.parts[stage.self], row_bytes, item, piece);
    for (const int member : stage.members)
      for (const SharePiece& p : own)
        if (member != rank) traffic.add(same_node(nodes, member, rank), p.bytes);
  }
  return traffic;
}

Traffic traffic_of_gather(std::span<const RowRange> ranges, std::span<const int> nodes, int rank, std::size_t row_bytes,
                          std::size_t max_message) {
  Traffic traffic;
  for (const ShareStage& stage : gather_stages(ranges, nodes, rank))
    for (std::size_t m = 0; m < stage.members.size(); ++m) {
      if (m == stage.self) continue;
      for (const SharePiece& p : pieces_of(stage.parts[m], row_bytes, 1, max_message))
        traffic.add(same_node(nodes, stage.members[m], rank), p.bytes);
    }
  return traffic;
}

}  // namespace emox
