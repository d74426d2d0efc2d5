// Dispatch plans of all ranks against a naive one that asks, for every rank, expert and token, whether a row goes
// there.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <set>
#include <tuple>

#include "parallel/expert/placement.h"
#include "parallel/expert/planned_exchange.h"
#include "parallel/expert/reach.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

/// A row where it comes from: source rank, token; a pick: and its place among the token's picks.
using Row = std::pair<int, int>;
using Pick = std::tuple<int, int, int>;

struct Problem {
  std::string name;
  std::int64_t experts = 8, top_k = 2;
  std::vector<int> nodes;                           ///< [ranks]
  std::vector<std::vector<std::int32_t>> ids;       ///< [ranks][tokens * top_k]
  std::vector<std::vector<std::int32_t>> segments;  ///< [ranks][docs + 1]
  std::vector<std::vector<std::uint8_t>> pools;     ///< [ranks][docs * experts]
  int ranks() const { return static_cast<int>(nodes.size()); }
  std::int64_t tokens(int rank) const { return static_cast<std::int64_t>(ids[idx(rank)].size()) / top_k; }
};

std::vector<int> ranks_on_nodes(int ranks, int per_node) {
  std::vector<int> nodes;
  for (int r = 0; r < ranks; ++r) nodes.push_back(r / per_node);
  return nodes;
}

/// Documents of the given lengths on each rank, pools of `pool(doc)` experts, picks drawn inside the pool.
template <typename PoolSize>
Problem documents(std::string name, std::int64_t experts, std::int64_t top_k, std::vector<int> nodes,
                  const std::vector<std::vector<int>>& lengths, PoolSize pool_size, unsigned seed) {
  Problem p{std::move(name), experts, top_k, std::move(nodes), {}, {}, {}};
  std::mt19937 gen(seed);
  int doc = 0;
  for (const auto& of_rank : lengths) {
    std::vector<std::int32_t> ids, segments{0};
    std::vector<std::uint8_t> pools;
    for (const int length : of_rank) {
      std::vector<std::int32_t> all(idx(experts));
      std::iota(all.begin(), all.end(), 0);
      std::shuffle(all.begin(), all.end(), gen);
      all.resize(idx(pool_size(doc++)));
      std::vector<std::uint8_t> mask(idx(experts), 0);
      for (const std::int32_t e : all) mask[idx(e)] = 1;
      pools.insert(pools.end(), mask.begin(), mask.end());
      for (int t = 0; t < length; ++t) {
        std::shuffle(all.begin(), all.end(), gen);
        ids.insert(ids.end(), all.begin(), all.begin() + top_k);
      }
      segments.push_back(segments.back() + length);
    }
    p.ids.push_back(ids), p.segments.push_back(segments), p.pools.push_back(pools);
  }
  return p;
}

std::vector<std::vector<int>> same_lengths(int ranks, const std::vector<int>& lengths) {
  return std::vector<std::vector<int>>(idx(ranks), lengths);
}

std::vector<Problem> problems() {
  std::vector<Problem> all;
  const auto any = [](std::int64_t experts, std::int64_t k) {
    return [experts, k](int doc) { return k + doc * 5 % (experts - k + 1); };
  };
  for (const int ranks : {1, 2, 3, 4, 6, 8})
    all.push_back(documents("mixed on " + std::to_string(ranks), 17, 3, ranks_on_nodes(ranks, 2),
                            same_lengths(ranks, {1, 9, 4, 1, 1, 17}), any(17, 3), 1));
  all.push_back(documents("documents of one token", 12, 4, ranks_on_nodes(4, 2), same_lengths(4, {1, 1, 1, 1, 1, 1, 1}),
                          any(12, 4), 2));
  all.push_back(documents(
      "pools of exactly the picks", 20, 4, ranks_on_nodes(5, 2), same_lengths(5, {6, 11}), [](int) { return 4; }, 3));
  for (std::int64_t size = 2; size <= 11; ++size)
    all.push_back(documents(
        "pools of " + std::to_string(size), 11, 2, ranks_on_nodes(4, 3), same_lengths(4, {13}),
        [size](int) { return size; }, 4));
  all.push_back(documents("ranks without tokens", 9, 2, ranks_on_nodes(4, 2), {{}, {12, 5}, {}, {3}}, any(9, 2), 5));
  all.push_back(documents("no tokens at all", 9, 2, ranks_on_nodes(3, 2), {{}, {}, {}}, any(9, 2), 6));
  all.push_back(
      documents("127 experts on 8 ranks", 127, 7, ranks_on_nodes(8, 4), same_lengths(8, {30, 2, 60}), any(127, 7), 7));
  all.push_back(documents("uneven nodes", 23, 5, {0, 0, 0, 1, 1, 2}, same_lengths(6, {8, 8, 8}), any(23, 5), 8));
  all.push_back(documents("interleaved nodes", 23, 5, {0, 1, 0, 1, 2}, same_lengths(5, {8, 8, 8}), any(23, 5), 9));
  all.push_back(documents(
      "all experts picked", 6, 6, ranks_on_nodes(4, 2), same_lengths(4, {5}), [](int) { return 6; }, 10));
  Problem one{"all tokens to one expert", 10, 1, ranks_on_nodes(5, 2), {}, {}, {}};
  for (int r = 0; r < 5; ++r) {
    one.ids.emplace_back(20, 7);
    one.segments.push_back({0, 20});
    std::vector<std::uint8_t> pool(10, 0);
    pool[7] = 1;
    one.pools.push_back(pool);
  }
  all.push_back(one);
  return all;
}

/// What one rank's experts work on.
struct Arrived {
  std::vector<std::int64_t> offsets;
  std::vector<Pick> rows;              ///< in expert order
  std::vector<Row> tokens;             ///< arrived rows, in the order of `held`
  std::vector<std::vector<int>> held;  ///< expert rows of each
};

/// O(ranks x experts x tokens x k), straight from the definition.
Arrived naive(const Problem& p, const ExpertPlacement& placement, int self, const std::vector<int>& source_order) {
  Arrived a;
  a.offsets.push_back(0);
  for (std::int64_t e = 0; e < p.experts; ++e) {
    if (placement.of_layer(0)[idx(e)] != self) continue;
    for (const int s : source_order)
      for (int t = 0; t < p.tokens(s); ++t)
        for (int j = 0; j < p.top_k; ++j)
          if (p.ids[idx(s)][idx(t * p.top_k + j)] == e) a.rows.emplace_back(s, t, j);
    a.offsets.push_back(static_cast<std::int64_t>(a.rows.size()));
  }
  return a;
}

template <typename T>
std::vector<T> permuted(const std::vector<T>& v, const std::vector<std::int32_t>& index) {
  std::vector<T> out;
  for (const std::int32_t i : index) out.push_back(v[idx(i)]);
  return out;
}

/// All ranks' plans, hop by hop, rows carried along by name.
struct Planned {
  std::vector<RowPicks> rows;
  std::vector<std::vector<Row>> row_names;
  std::vector<std::vector<Pick>> pick_names;
  std::vector<std::vector<std::int64_t>> arrived_from;
};

Planned start(const Problem& p) {
  Planned s;
  for (int r = 0; r < p.ranks(); ++r) {
    RowPicks rows;
    picks_of_tokens(rows, p.ids[idx(r)], p.top_k);
    s.rows.push_back(rows);
    std::vector<Row> names;
    std::vector<Pick> picks;
    for (int t = 0; t < p.tokens(r); ++t) {
      names.emplace_back(r, t);
      for (int j = 0; j < p.top_k; ++j) picks.emplace_back(r, t, j);
    }
    s.row_names.push_back(names);
    s.pick_names.push_back(picks);
  }
  return s;
}

template <typename Destination>
std::vector<SendPlan> hop(Planned& s, int ranks, std::int64_t max_destinations, Destination destination) {
  std::vector<SendPlan> plans(idx(ranks));
  std::vector<std::vector<Row>> rows;
  std::vector<std::vector<Pick>> picks;
  std::vector<std::vector<std::int32_t>> packed_of;
  for (int r = 0; r < ranks; ++r) {
    const auto i = idx(r);
    plan_send(plans[i], s.rows[i], destination(r), r, ranks, max_destinations);
    rows.push_back(permuted(s.row_names[i], plans[i].row));
    picks.push_back(permuted(s.pick_names[i], plans[i].pick));
    packed_of.push_back(plans[i].packed);
  }
  Planned next;
  const auto of_rows = [](const SendPlan& p) -> const std::vector<std::int64_t>& { return p.rows; };
  const auto of_picks = [](const SendPlan& p) -> const std::vector<std::int64_t>& { return p.picks; };
  for (int r = 0; r < ranks; ++r) {
    std::vector<Row> row_names;
    std::vector<Pick> pick_names;
    std::vector<std::int32_t> packed;
    arriving<Row>(row_names, plans, rows, r, of_rows);
    arriving<Pick>(pick_names, plans, picks, r, of_picks);
    arriving<std::int32_t>(packed, plans, packed_of, r, of_picks);
    RowPicks arrived;
    unpack_picks(arrived, packed, static_cast<std::int64_t>(row_names.size()));
    next.rows.push_back(arrived);
    next.row_names.push_back(row_names);
    next.pick_names.push_back(pick_names);
    next.arrived_from.push_back(arriving_rows(plans, r));
  }
  s = next;
  return plans;
}

Arrived sorted(const Planned& s, const ExpertPlacement& placement, int self, std::int64_t top_k) {
  const auto i = idx(self);
  const std::vector<std::int32_t> held = placement.experts_of(0, self);
  std::vector<std::int32_t> local(idx(placement.experts()), -1);
  for (std::size_t e = 0; e < held.size(); ++e) local[idx(held[e])] = static_cast<std::int32_t>(e);
  ExpertOrder order;
  const auto experts = static_cast<std::int64_t>(held.size());
  plan_experts(order, s.rows[i], s.arrived_from[i], {self, local, experts, std::min(top_k, experts)});
  Arrived a{order.offsets, permuted(s.pick_names[i], order.pick), s.row_names[i], {}};
  for (std::size_t row = 0; row < a.tokens.size(); ++row) {
    a.held.emplace_back();
    for (std::int64_t j = 0; j < order.max_experts; ++j)
      if (const std::int32_t h = order.slots[row * idx(order.max_experts) + idx(j)]; h >= 0) a.held.back().push_back(h);
  }
  // The row of each expert row is the token of its pick.
  for (std::size_t k = 0; k < order.row.size(); ++k)
    EXPECT_EQ(a.tokens[idx(order.row[k])], Row(std::get<0>(a.rows[k]), std::get<1>(a.rows[k])));
  return a;
}

void expect_held(const Arrived& a) {
  std::set<int> all;
  for (std::size_t row = 0; row < a.held.size(); ++row)
    for (const int h : a.held[row]) {
      EXPECT_TRUE(all.insert(h).second);
      const Pick& pick = a.rows[idx(h)];
      EXPECT_EQ(Row(std::get<0>(pick), std::get<1>(pick)), a.tokens[row]);
    }
  EXPECT_EQ(all.size(), a.rows.size());
}

/// Every row once to every destination that has one of its experts, to no other, in the promised order.
void expect_sent_once(const Problem& p, const Planned& before, const std::vector<SendPlan>& plans,
                      const std::vector<std::vector<std::int32_t>>& destination) {
  for (int s = 0; s < p.ranks(); ++s) {
    const auto i = idx(s);
    const SendPlan& plan = plans[i];
    std::vector<int> order;
    for (int r = 0; r < p.ranks(); ++r)
      if (r != s) order.push_back(r);
    order.push_back(s);
    std::vector<std::int32_t> rows;
    std::vector<std::vector<std::pair<int, int>>> places(idx(before.rows[i].rows()));
    for (const int d : order) {
      std::int64_t sent = 0, picks = 0;
      for (std::int64_t row = 0; row < before.rows[i].rows(); ++row) {
        std::int64_t here = 0;
        for (std::int32_t q = before.rows[i].first[idx(row)]; q < before.rows[i].first[idx(row + 1)]; ++q)
          here += destination[i][idx(before.rows[i].experts[idx(q)])] == d;
        if (here == 0) continue;
        places[idx(row)].emplace_back(d, static_cast<int>(rows.size()));
        rows.push_back(static_cast<std::int32_t>(row));
        ++sent, picks += here;
      }
      EXPECT_EQ(plan.rows[idx(d)], sent);
      EXPECT_EQ(plan.picks[idx(d)], picks);
    }
    EXPECT_EQ(plan.row, rows);
    for (std::size_t row = 0; row < places.size(); ++row) {
      std::sort(places[row].begin(), places[row].end());
      for (std::int64_t f = 0; f < plan.max_destinations; ++f) {
        const auto j = idx(f);
        EXPECT_EQ(plan.slots[row * idx(plan.max_destinations) + j],
                  j < places[row].size() ? places[row][j].second : -1);
      }
    }
  }
}

TEST(DispatchPlans, OneHopIsTheNaivePlan) {
  for (const Problem& p : problems())
    for (const ExpertPlacement& placement :
         {ExpertPlacement::block(1, p.experts, p.ranks()), ExpertPlacement::random(1, p.experts, p.ranks(), 5)}) {
      SCOPED_TRACE(p.name);
      const std::vector<std::int32_t> rank_of(placement.of_layer(0).begin(), placement.of_layer(0).end());
      const Planned before = start(p);
      Planned s = before;
      const auto plans = hop(s, p.ranks(), std::min<std::int64_t>(p.top_k, p.ranks()),
                             [&](int) -> std::span<const std::int32_t> { return rank_of; });
      expect_sent_once(p, before, plans, std::vector(idx(p.ranks()), rank_of));
      std::vector<int> sources(idx(p.ranks()));
      std::iota(sources.begin(), sources.end(), 0);
      for (int r = 0; r < p.ranks(); ++r) {
        const Arrived got = sorted(s, placement, r, p.top_k), want = naive(p, placement, r, sources);
        EXPECT_EQ(got.offsets, want.offsets);
        EXPECT_EQ(got.rows, want.rows);
        expect_held(got);
      }
    }
}

TEST(DispatchPlans, TwoHopsBringTheSameRows) {
  for (const Problem& p : problems())
    for (const ExpertPlacement& placement :
         {ExpertPlacement::block(1, p.experts, p.ranks()), ExpertPlacement::random(1, p.experts, p.ranks(), 5)}) {
      SCOPED_TRACE(p.name);
      const std::vector<std::int32_t> rank_of(placement.of_layer(0).begin(), placement.of_layer(0).end());
      std::vector<std::vector<std::int32_t>> gateway;
      for (int r = 0; r < p.ranks(); ++r) gateway.push_back(gateways(rank_of, p.nodes, r));
      const Planned before = start(p);
      Planned s = before;
      const auto first = hop(s, p.ranks(), p.top_k, [&](int r) { return gateway[idx(r)]; });
      expect_sent_once(p, before, first, gateway);
      for (int r = 0; r < p.ranks(); ++r) {
        std::set<std::pair<int, int>> nodes;  // (token, node): one row each
        for (int d = 0; d < p.ranks(); ++d)
          for (int t = 0, n = static_cast<int>(first[idx(r)].rows[idx(d)]); t < n; ++t)
            nodes.emplace(d, p.nodes[idx(d)]);
        std::set<int> distinct;
        for (const auto& [d, node] : nodes) EXPECT_TRUE(distinct.insert(node).second) << "two gateways of one node";
      }
      const Planned between = s;
      const auto second = hop(s, p.ranks(), p.top_k, [&](int) -> std::span<const std::int32_t> { return rank_of; });
      expect_sent_once(p, between, second, std::vector(idx(p.ranks()), rank_of));
      for (int r = 0; r < p.ranks(); ++r) {
        for (int d = 0; d < p.ranks(); ++d)  // the second hop stays inside the node
          if (p.nodes[idx(d)] != p.nodes[idx(r)]) {
            EXPECT_EQ(second[idx(r)].rows[idx(d)], 0);
          }
        Arrived got = sorted(s, placement, r, p.top_k);
        std::vector<int> sources(idx(p.ranks()));
        std::iota(sources.begin(), sources.end(), 0);
        Arrived want = naive(p, placement, r, sources);
        expect_held(got);
        EXPECT_EQ(got.offsets, want.offsets);
        for (std::size_t e = 0; e + 1 < want.offsets.size(); ++e)  // rows of an expert come by gateway, not by source
          for (auto* rows : {&got.rows, &want.rows})
            std::sort(rows->begin() + want.offsets[e], rows->begin() + want.offsets[e + 1]);
        EXPECT_EQ(got.rows, want.rows);
      }
    }
}

TEST(DispatchPlans, PoolsLimitWhatARankCanBeSent) {
  for (const Problem& p : problems()) {
    SCOPED_TRACE(p.name);
    const ExpertPlacement placement = ExpertPlacement::random(1, p.experts, p.ranks(), 6);
    const auto rank_of = placement.of_layer(0);
    for (int r = 0; r < p.ranks(); ++r) {
      const auto i = idx(r);
      PoolReach reach;
      pool_reach(reach, p.pools[i], p.segments[i], rank_of, p.ranks());
      std::vector<std::int64_t> limit(idx(p.ranks()), 0);
      std::int64_t ranks = 0, nodes = 0;
      for (std::size_t doc = 0; doc + 1 < p.segments[i].size(); ++doc) {
        std::set<int> reached, reached_nodes;
        for (std::int64_t e = 0; e < p.experts; ++e)
          if (p.pools[i][doc * idx(p.experts) + idx(e)] != 0) {
            reached.insert(rank_of[idx(e)]);
            reached_nodes.insert(p.nodes[idx(rank_of[idx(e)])]);
          }
        ranks += static_cast<std::int64_t>(reached.size()), nodes += static_cast<std::int64_t>(reached_nodes.size());
        for (const int d : reached) limit[idx(d)] += p.segments[i][doc + 1] - p.segments[i][doc];
      }
      EXPECT_EQ(reach.limit, limit);
      EXPECT_EQ(reach.reached, ranks);
      std::vector<std::int32_t> node_of;
      for (const std::int32_t d : rank_of) node_of.push_back(p.nodes[idx(d)]);
      pool_reach(reach, p.pools[i], p.segments[i], node_of, p.ranks());
      EXPECT_EQ(reach.reached, nodes);
      RowPicks rows;
      picks_of_tokens(rows, p.ids[i], p.top_k);
      SendPlan plan;
      plan_send(plan, rows, rank_of, r, p.ranks(), std::min<std::int64_t>(p.top_k, p.ranks()));
      for (std::size_t d = 0; d < limit.size(); ++d) EXPECT_LE(plan.rows[d], limit[d]);
    }
  }
}

TEST(DispatchPlans, ContradictionsAreErrors) {
  RowPicks rows;
  EXPECT_THROW(unpack_picks(rows, std::vector<std::int32_t>{3, 4, 5}, 3), ShapeError);  // two rows, three announced
  EXPECT_THROW(unpack_picks(rows, std::vector<std::int32_t>{2, 5}, 1), ShapeError);     // a pick before the first row
  unpack_picks(rows, std::vector<std::int32_t>{3, 4, 5}, 2);
  ExpertOrder order;
  const std::vector<std::int64_t> from{2};
  const std::vector<std::int32_t> two_of_three{0, 1, -1}, two{0, 1};
  EXPECT_THROW(plan_experts(order, rows, from, {0, two_of_three, 2, 2}), ShapeError);
  EXPECT_THROW(plan_experts(order, rows, from, {0, two, 2, 2}), ShapeError);  // no expert 2
  SendPlan plan;
  EXPECT_THROW(plan_send(plan, rows, std::vector<std::int32_t>{0, 0}, 0, 2, 2), ShapeError);
  EXPECT_THROW(plan_send(plan, rows, std::vector<std::int32_t>{0, 0, 1}, 0, 2, 1),
               ShapeError);  // more destinations than there is room for
}

}  // namespace
}  // namespace emox
