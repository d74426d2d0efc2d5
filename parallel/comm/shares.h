// Who owns which rows of a tensor that all ranks have, and in which steps its sum reaches the owners.
//
// Between nodes a sum is the dear one: 8 ranks of a node that each send their own part send eight times what they need
// to. So the ranks of a node add up first, each collecting what the ranks at its place on any node own; then ranks at
// the same place of all nodes exchange those sums. Every byte of the tensor leaves a node once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace emox {

/// Rows [begin, end) of a tensor, and the rank that has them in the end (reduce_scatter) or at the start
/// (all_gather_v).
struct RowRange {
  std::int64_t begin = 0, end = 0;
  int owner = 0;
  friend bool operator==(const RowRange&, const RowRange&) = default;
};

/// Rank r owns rows [cuts[r], cuts[r + 1]); empty blocks are left out.
std::vector<RowRange> ranges_of(std::span<const std::int64_t> cuts);

/// One step among a few ranks: member m collects parts[m], or gives it to the others.
struct ShareStage {
  std::vector<int> members;                  ///< ranks, in the order in which their parts are added
  std::size_t self = 0;                      ///< this rank's place among them
  std::vector<std::vector<RowRange>> parts;  ///< [members], rising
};

/// All ranks at once: parts are added in rank order.
ShareStage flat_stage(std::span<const RowRange> ranges, std::size_t ranks, int rank);
/// Whether nodes are added up first: there are several, of the same number of ranks, more than one.
bool adds_up_nodes(std::span<const int> nodes);
/// The stages of a sum on `rank`: inside its node, then among the ranks at its place of each node; otherwise one stage
/// among all. Sums run over the members of a stage in order, so the bits depend on which ranks share a node, and on
/// nothing else. `nodes`: of every rank, as Communicator::nodes().
std::vector<ShareStage> sum_stages(std::span<const RowRange> ranges, std::span<const int> nodes, int rank);
/// The same way back: an owner's rows first reach its place of each node, then the others there.
std::vector<ShareStage> gather_stages(std::span<const RowRange> ranges, std::span<const int> nodes, int rank);

/// Rows travel in pieces of this size at most, whatever the number of ranks; two are on their way from each member.
inline constexpr std::size_t kSharePiece = std::size_t{256} << 10;

/// What a message holds at most: transports count its bytes in int.
inline constexpr std::size_t kLongestMessage = std::size_t{1} << 30;

/// The pieces of one part: each inside one range, of whole elements of `item` bytes, at most `piece` bytes long.
struct SharePiece {
  std::size_t begin = 0, bytes = 0;
};
std::vector<SharePiece> pieces_of(std::span<const RowRange> part, std::size_t row_bytes, std::size_t item,
                                  std::size_t piece);

/// What a rank has received.
struct Traffic {
  std::int64_t messages_intra_node = 0, bytes_intra_node = 0;
  std::int64_t messages_inter_node = 0, bytes_inter_node = 0;
  void add(bool same_node, std::size_t bytes);
  Traffic& operator+=(const Traffic& other);
  Traffic& operator-=(const Traffic& other);
  friend bool operator==(const Traffic&, const Traffic&) = default;
};
/// What `rank` receives in the stages, by counting their pieces.
Traffic traffic_of_sum(std::span<const RowRange> ranges, std::span<const int> nodes, int rank, std::size_t row_bytes,
                       std::size_t item, std::size_t piece = kSharePiece);
Traffic traffic_of_gather(std::span<const RowRange> ranges, std::span<const int> nodes, int rank, std::size_t row_bytes,
                          std::size_t max_message = kLongestMessage);

}  // namespace emox
