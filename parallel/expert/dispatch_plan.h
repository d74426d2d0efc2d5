// The integers of dispatch: which row goes where, made from the picks, the placement and the pools (design 4.4).
//
// Pure functions on host integers. What travels between the ranks are the wire lists made here; who carries them (MPI,
// threads, a simulation of 1,024 ranks in `emox bench dispatch`) does not matter, so all of them plan the same.
//
// A hop sends every row once to each destination that holds an expert which the row picked. Plain dispatch is one hop
// (token -> ranks); two-level dispatch is two (token -> nodes, arrived row -> ranks of the node). After the last hop
// the rows are sorted by expert. Rows are counted from 0 on the rank that holds them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace emox {

/// Rows of one rank, each with the experts that it is for.
struct RowPicks {
  std::vector<std::int32_t> experts;  ///< [picks] routed experts' global numbers, row after row
  std::vector<std::int32_t> first;    ///< [rows + 1] row i has picks [first[i], first[i + 1])
  std::int64_t rows() const { return static_cast<std::int64_t>(first.size()) - 1; }
  std::int64_t picks() const { return static_cast<std::int64_t>(experts.size()); }
};
/// ids[tokens, top_k] as rows of top_k picks each. `out` keeps its memory from call to call.
void picks_of_tokens(RowPicks& out, std::span<const std::int32_t> ids, std::int64_t top_k);

/// The sending side of a hop. Send order: destinations rising, but this rank itself last, so that what leaves the rank
/// and what stays are two contiguous parts; rows of one destination keep their order.
struct SendPlan {
  std::vector<std::int64_t> rows, picks;  ///< [ranks] for each destination
  std::vector<std::int32_t> row;          ///< [sent rows] input row, in send order
  std::vector<std::int32_t> pick;         ///< [picks] input pick, in send order: a permutation
  std::vector<std::int32_t> wire;         ///< [picks] in send order: 2 expert + (1 at the first pick of a sent row)
  std::vector<std::int32_t> sent;         ///< [input rows, fan] places in send order, by rising destination; -1: none
  std::int64_t fan = 0;                   ///< most destinations that a row can have

  std::int64_t sent_rows() const { return static_cast<std::int64_t>(row.size()); }
};
/// destination[experts]: the rank to which a row goes for an expert. fan: an upper limit that the caller knows
/// (min(top_k, destinations)); ShapeError when a row has more.
void plan_send(SendPlan& out, const RowPicks& in, std::span<const std::int32_t> destination, int self, int ranks,
               std::int64_t fan);

/// The rows that arrived: wire lists of the other ranks in rising order, this rank's own last. A list that
/// contradicts the announced number of rows is a ShapeError.
void picks_of_wire(RowPicks& out, std::span<const std::int32_t> wire, std::int64_t expected_rows);

/// The receiving side of the last hop: arrived rows sorted by local expert. Rows of one expert come by rising source
/// rank, then in the order in which the source sent them.
struct ExpertOrder {
  std::vector<std::int64_t> offsets;  ///< [local experts + 1] rows of expert e: [offsets[e], offsets[e + 1])
  std::vector<std::int32_t> row;      ///< [picks] arrived row of each expert row
  std::vector<std::int32_t> pick;     ///< [picks] arrived pick of each expert row: a permutation
  std::vector<std::int32_t> held;     ///< [arrived rows, fan] expert rows of an arrived row; -1: none
  std::int64_t fan = 0;
};
/// arrived_rows[ranks]: how many rows came from each source; in `in` they lie as picks_of_wire says.
/// local_expert[experts]: an expert's place on this rank; ShapeError when a row is for an expert that is elsewhere
/// (-1).
void plan_experts(ExpertOrder& out, const RowPicks& in, std::span<const std::int64_t> arrived_rows, int self,
                  std::span<const std::int32_t> local_expert, std::int64_t local_experts, std::int64_t fan);

/// What the pools alone say before any token picks: which ranks a document can reach, and so at most how many rows each
/// rank can be sent. Formula (5): the mean of `document_ranks` over documents.
struct PoolReach {
  /// [ranks] tokens that can reach it: those of the documents whose pool does, of the others the free ones.
  std::vector<std::int64_t> row_limit;
  std::int64_t documents = 0;
  std::int64_t document_ranks = 0;  ///< ranks that a document's pool can reach, summed over documents
  std::int64_t document_nodes = 0;
};
/// pool[docs, experts] (empty: every expert), segments[docs + 1], destination[experts], node[ranks],
/// free_tokens[tokens] (empty: none): a token with 1 may go to every expert.
void pool_reach(PoolReach& out, std::span<const std::uint8_t> pool, std::span<const std::int32_t> segments,
                std::span<const std::int32_t> destination, std::span<const int> node,
                std::span<const std::uint8_t> free_tokens = {});

}  // namespace emox
