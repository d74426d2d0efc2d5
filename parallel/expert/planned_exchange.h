// The exchange of a hop without ranks: what each would receive, from everybody's send plans. For planning more ranks
// than there are (`emox bench dispatch`) and for tests of the plans.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/expert/dispatch_plan.h"

namespace emox {

/// Items of `values[rank]` in send order (rows or picks, as `counts` says) that arrive at `self`, in arrival order: the
/// other ranks rising, this one's own last.
template <typename T, typename Counts>
void arriving(std::vector<T>& out, std::span<const SendPlan> plans, std::span<const std::vector<T>> values, int self,
              Counts&& counts) {
  out.clear();
  const auto append = [&](int from) {
    const std::vector<std::int64_t>& n = counts(plans[static_cast<std::size_t>(from)]);
    // In send order `from` itself comes last, everybody else by number.
    std::int64_t begin = 0;
    const int ranks = static_cast<int>(n.size());
    const int stop = self == from ? ranks : self;
    for (int r = 0; r < stop; ++r)
      if (r != from) begin += n[static_cast<std::size_t>(r)];
    const auto first = values[static_cast<std::size_t>(from)].begin() + begin;
    out.insert(out.end(), first, first + n[static_cast<std::size_t>(self)]);
  };
  for (int r = 0; r < static_cast<int>(plans.size()); ++r)
    if (r != self) append(r);
  append(self);
}

/// Rows that `self` receives from each rank.
inline std::vector<std::int64_t> arriving_rows(std::span<const SendPlan> plans, int self) {
  std::vector<std::int64_t> rows;
  for (const SendPlan& p : plans) rows.push_back(p.rows[static_cast<std::size_t>(self)]);
  return rows;
}

}  // namespace emox
