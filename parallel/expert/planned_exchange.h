// Plans of ranks that do not run, on host vectors: the ops of runtime/ops/dispatch_plan.h for one rank at a time, and
// what each would receive from everybody's plans. For planning more ranks than there are (`emox bench dispatch`) and
// for tests.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/core/idx.h"

namespace emox {

/// ops::RowPicks
struct RowPicks {
  std::vector<std::int32_t> experts, first;
  std::int64_t rows() const { return static_cast<std::int64_t>(first.size()) - 1; }
  std::int64_t picks() const { return static_cast<std::int64_t>(experts.size()); }
};
/// ids[tokens, top_k] as rows of top_k picks each. `out` keeps its memory from call to call.
void picks_of_tokens(RowPicks& out, std::span<const std::int32_t> ids, std::int64_t top_k);

/// ops::SendOrder, and for each destination its rows and picks.
struct SendPlan {
  std::vector<std::int64_t> counts;       ///< [ranks, 2]
  std::vector<std::int64_t> rows, picks;  ///< [ranks] the same by column
  std::vector<std::int32_t> row, pick, packed;
  std::vector<std::int32_t> slots;  ///< [input rows, max_destinations]
  std::int64_t max_destinations = 0;
};
/// destination[experts]: the rank to which a row goes for an expert.
void plan_send(SendPlan& out, const RowPicks& in, std::span<const std::int32_t> destination, int self, int ranks,
               std::int64_t max_destinations);

/// The rows that arrived, by the lists of picks that came with them.
void unpack_picks(RowPicks& out, std::span<const std::int32_t> packed, std::int64_t expected_rows);

/// ops::ExpertOrder
struct ExpertOrder {
  std::vector<std::int64_t> offsets;
  std::vector<std::int32_t> row, pick;
  std::vector<std::int32_t> slots;  ///< [arrived rows, max_experts]
  std::int64_t max_experts = 0;
};
/// The rank that rows arrive at, and its experts.
struct RankExperts {
  int rank;
  std::span<const std::int32_t> local_expert;  ///< [experts] an expert's place there, -1: elsewhere
  std::int64_t count;
  std::int64_t max_picked;  ///< by a row
};
void plan_experts(ExpertOrder& out, const RowPicks& in, std::span<const std::int64_t> source_rows,
                  const RankExperts& here);

/// ops::pool_reach
struct PoolReach {
  std::vector<std::int64_t> limit;  ///< [destinations]
  std::int64_t reached = 0;
};
void pool_reach(PoolReach& out, std::span<const std::uint8_t> pool, std::span<const std::int32_t> segments,
                std::span<const std::int32_t> destination, std::int64_t destinations,
                std::span<const std::uint8_t> free_tokens = {});

/// Items of `values[rank]` in send order (rows or picks, as `counts` says) that arrive at `self`, in arrival order: the
/// other ranks rising, this one's own last.
template <typename T, typename Counts>
void arriving(std::vector<T>& out, std::span<const SendPlan> plans, std::span<const std::vector<T>> values, int self,
              Counts&& counts) {
  out.clear();
  const auto append = [&](int from) {
    const std::vector<std::int64_t>& n = counts(plans[idx(from)]);
    // In send order `from` itself comes last, everybody else by number.
    std::int64_t begin = 0;
    const int ranks = static_cast<int>(n.size());
    const int stop = self == from ? ranks : self;
    for (int r = 0; r < stop; ++r)
      if (r != from) begin += n[idx(r)];
    const auto first = values[idx(from)].begin() + begin;
    out.insert(out.end(), first, first + n[idx(self)]);
  };
  for (int r = 0; r < static_cast<int>(plans.size()); ++r)
    if (r != self) append(r);
  append(self);
}

/// Rows that `self` receives from each rank.
inline std::vector<std::int64_t> arriving_rows(std::span<const SendPlan> plans, int self) {
  std::vector<std::int64_t> rows;
  for (const SendPlan& p : plans) rows.push_back(p.rows[idx(self)]);
  return rows;
}

}  // namespace emox
