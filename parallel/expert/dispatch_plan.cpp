#include "parallel/expert/dispatch_plan.h"

#include <algorithm>

#include "runtime/core/error.h"

namespace emox {
namespace {

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

/// Destinations in send order: rising, this rank last.
template <typename Visit>
void in_send_order(int ranks, int self, Visit&& visit) {
  for (int r = 0; r < ranks; ++r)
    if (r != self) visit(r);
  visit(self);
}

}  // namespace

void picks_of_tokens(RowPicks& out, std::span<const std::int32_t> ids, std::int64_t top_k) {
  const std::int64_t tokens = static_cast<std::int64_t>(ids.size()) / top_k;
  out.experts.assign(ids.begin(), ids.end());
  out.first.resize(at(tokens + 1));
  for (std::int64_t t = 0; t <= tokens; ++t) out.first[at(t)] = static_cast<std::int32_t>(t * top_k);
}

void plan_send(SendPlan& out, const RowPicks& in, std::span<const std::int32_t> destination, int self, int ranks,
               std::int64_t fan) {
  const std::int64_t rows = in.rows(), picks = in.picks();
  out.fan = fan;
  out.rows.assign(at(ranks), 0);
  out.picks.assign(at(ranks), 0);
  // seen[d] = i + 1: row i has a pick for destination d already. One stamp a destination instead of a set a row.
  thread_local std::vector<std::int32_t> seen;
  thread_local std::vector<std::int64_t> next_row, next_pick;
  seen.assign(at(ranks), 0);
  std::int64_t sent = 0;
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int32_t p = in.first[at(i)]; p < in.first[at(i + 1)]; ++p) {
      const std::int32_t d = destination[at(in.experts[at(p)])];
      ++out.picks[at(d)];
      if (seen[at(d)] == i + 1) continue;
      seen[at(d)] = static_cast<std::int32_t>(i + 1);
      ++out.rows[at(d)];
      ++sent;
    }
  next_row.assign(at(ranks), 0);
  next_pick.assign(at(ranks), 0);
  std::int64_t row_at = 0, pick_at = 0;
  in_send_order(ranks, self, [&](int r) {
    next_row[at(r)] = row_at;
    next_pick[at(r)] = pick_at;
    row_at += out.rows[at(r)];
    pick_at += out.picks[at(r)];
  });
  out.row.resize(at(sent));
  out.pick.resize(at(picks));
  out.wire.resize(at(picks));
  out.sent.assign(at(rows * fan), -1);
  seen.assign(at(ranks), 0);
  thread_local std::vector<std::int32_t> destinations;  // of one row, rising
  destinations.resize(at(fan));
  for (std::int64_t i = 0; i < rows; ++i) {
    std::int32_t* const places = out.sent.data() + i * fan;
    std::int64_t count = 0;
    for (std::int32_t p = in.first[at(i)]; p < in.first[at(i + 1)]; ++p) {
      const std::int32_t expert = in.experts[at(p)], d = destination[at(expert)];
      const bool first = seen[at(d)] != i + 1;
      if (first) {
        seen[at(d)] = static_cast<std::int32_t>(i + 1);
        require<ShapeError>(count < fan, "row {} goes to more than {} ranks", i, fan);
        const std::int64_t place = next_row[at(d)]++;
        out.row[at(place)] = static_cast<std::int32_t>(i);
        std::int64_t j = count++;  // insertion: a row has few destinations
        for (; j > 0 && destinations[at(j - 1)] > d; --j) {
          destinations[at(j)] = destinations[at(j - 1)];
          places[j] = places[j - 1];
        }
        destinations[at(j)] = d;
        places[j] = static_cast<std::int32_t>(place);
      }
      const std::int64_t q = next_pick[at(d)]++;
      out.pick[at(q)] = p;
      out.wire[at(q)] = 2 * expert + (first ? 1 : 0);
    }
  }
}

void picks_of_wire(RowPicks& out, std::span<const std::int32_t> wire, std::int64_t expected_rows) {
  out.experts.resize(wire.size());
  out.first.clear();
  out.first.reserve(at(expected_rows + 1));
  for (std::size_t p = 0; p < wire.size(); ++p) {
    if ((wire[p] & 1) != 0) out.first.push_back(static_cast<std::int32_t>(p));
    out.experts[p] = wire[p] >> 1;
  }
  out.first.push_back(static_cast<std::int32_t>(wire.size()));
  require<ShapeError>(out.rows() == expected_rows && (wire.empty() || out.first.front() == 0),
                      "the lists of picks that arrived hold {} rows, {} were announced", out.rows(), expected_rows);
}

void plan_experts(ExpertOrder& out, const RowPicks& in, std::span<const std::int64_t> arrived_rows, int self,
                  std::span<const std::int32_t> local_expert, std::int64_t local_experts, std::int64_t fan) {
  out.fan = fan;
  out.offsets.assign(at(local_experts + 1), 0);
  for (const std::int32_t e : in.experts) {
    const std::int32_t local = local_expert[at(e)];
    require<ShapeError>(local >= 0, "a row arrived for expert {}, which is not on this rank", e);
    ++out.offsets[at(local + 1)];
  }
  for (std::size_t e = 1; e < out.offsets.size(); ++e) out.offsets[e] += out.offsets[e - 1];
  thread_local std::vector<std::int64_t> next;
  next.assign(out.offsets.begin(), out.offsets.end());
  out.row.resize(in.experts.size());
  out.pick.resize(in.experts.size());
  out.held.assign(at(in.rows() * fan), -1);
  const auto place_rows = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int32_t first = in.first[at(i)], last = in.first[at(i + 1)];
      require<ShapeError>(last - first <= fan, "an arrived row is for {} experts, at most {} can be", last - first,
                          fan);
      for (std::int32_t p = first; p < last; ++p) {
        const std::int64_t place = next[at(local_expert[at(in.experts[at(p)])])]++;
        out.row[at(place)] = static_cast<std::int32_t>(i);
        out.pick[at(place)] = p;
        out.held[at(i * fan + p - first)] = static_cast<std::int32_t>(place);
      }
    }
  };
  // This rank's own rows lie last, but take their turn among the sources.
  const auto ranks = static_cast<int>(arrived_rows.size());
  const std::int64_t own = in.rows() - arrived_rows[at(self)];
  std::int64_t begin = 0;
  for (int r = 0; r < ranks; ++r) {
    if (r == self) {
      place_rows(own, in.rows());
      continue;
    }
    place_rows(begin, begin + arrived_rows[at(r)]);
    begin += arrived_rows[at(r)];
  }
}

void pool_reach(PoolReach& out, std::span<const std::uint8_t> pool, std::span<const std::int32_t> segments,
                std::span<const std::int32_t> destination, std::span<const int> node,
                std::span<const std::uint8_t> free_tokens) {
  const std::size_t experts = destination.size(), ranks = node.size();
  out = {};
  out.row_limit.assign(ranks, 0);
  out.documents = static_cast<std::int64_t>(segments.size()) - 1;
  const auto nodes = static_cast<std::size_t>(*std::max_element(node.begin(), node.end()) + 1);
  thread_local std::vector<std::int64_t> rank_seen, node_seen, free_seen;
  rank_seen.assign(ranks, -1);
  node_seen.assign(nodes, -1);
  free_seen.assign(ranks, -1);
  for (std::int64_t doc = 0; doc < out.documents; ++doc) {
    const std::int64_t tokens = segments[at(doc + 1)] - segments[at(doc)];
    const std::uint8_t* mask = pool.empty() ? nullptr : pool.data() + at(doc) * experts;
    for (std::size_t e = 0; e < experts; ++e) {
      if (mask != nullptr && mask[e] == 0) continue;
      const auto r = at(destination[e]);
      if (rank_seen[r] == doc) continue;
      rank_seen[r] = doc;
      ++out.document_ranks;
      out.row_limit[r] += tokens;
      const auto n = at(node[r]);
      if (node_seen[n] == doc) continue;
      node_seen[n] = doc;
      ++out.document_nodes;
    }
    if (free_tokens.empty() || mask == nullptr) continue;
    const auto first = free_tokens.begin() + segments[at(doc)];
    const std::int64_t beyond = std::count_if(first, first + tokens, [](std::uint8_t f) { return f != 0; });
    for (std::size_t e = 0; e < experts && beyond > 0; ++e) {
      const auto r = at(destination[e]);
      if (rank_seen[r] == doc || free_seen[r] == doc) continue;  // the pool reaches it, or it is counted
      free_seen[r] = doc;
      out.row_limit[r] += beyond;
    }
  }
}

}  // namespace emox
