// Placements by affinity: against all there are on small cases, against random ones, on graphs that are awkward, and on
// documents whose clusters are known.
#include "parallel/expert/placement_optimiser.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

#include "parallel/expert/expert_swaps.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

DocumentProfiles profiles_of(std::int64_t layers, std::int64_t experts,
                             const std::vector<std::vector<std::int32_t>>& documents) {
  DocumentProfiles p;
  p.layers = layers, p.experts = experts;
  for (const auto& d : documents) {
    p.tokens.push_back(std::max<std::int64_t>(1, std::accumulate(d.begin(), d.end(), std::int64_t{0}) / layers));
    p.picks.insert(p.picks.end(), d.begin(), d.end());
  }
  return p;
}

/// Documents of `clusters` kinds: a kind's documents pick the same experts of every layer, which are mixed up by layer,
/// and now and then any other.
DocumentProfiles clustered(std::int64_t layers, std::int64_t experts, int clusters, int documents, double noise,
                           unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::vector<std::int32_t>> order(idx(layers), std::vector<std::int32_t>(idx(experts)));
  for (auto& o : order) std::iota(o.begin(), o.end(), 0), std::shuffle(o.begin(), o.end(), random);
  std::uniform_real_distribution<double> share(0, 1);
  std::vector<std::vector<std::int32_t>> all;
  for (int d = 0; d < documents; ++d) {
    std::vector<std::int32_t> picks(idx(layers * experts), 0);
    for (std::int64_t l = 0; l < layers; ++l)
      for (int t = 0; t < 100; ++t) {
        const std::int64_t of_kind = experts / clusters;
        const auto place = share(random) < noise
                               ? static_cast<std::int64_t>(random() % idx(experts))
                               : d % clusters * of_kind + static_cast<std::int64_t>(random() % idx(of_kind));
        ++picks[idx(l * experts + order[idx(l)][idx(place)])];
      }
    all.push_back(picks);
  }
  return profiles_of(layers, experts, all);
}

void expect_equal_counts(const ExpertPlacement& p) {
  for (std::int64_t l = 0; l < p.layers(); ++l) {
    std::vector<int> owned(idx(p.ranks()), 0);
    for (const std::int32_t r : p.of_layer(l)) ++owned[idx(r)];
    const auto [least, most] = std::minmax_element(owned.begin(), owned.end());
    EXPECT_LE(*most - *least, 1) << "layer " << l;
  }
}

/// The best sum of affinity over all assignments that keep room and limits; the least excess first.
std::pair<double, double> brute_force(const ExpertSwaps& s) {
  std::pair<double, double> best{1e300, 0};  // excess, -affinity
  std::vector<std::int64_t> left = s.room;
  std::vector<double> load(s.parts, 0);
  const std::function<void(std::size_t, double)> go = [&](std::size_t e, double affinity) {
    if (e == s.load.size()) {
      double over = 0;
      for (std::size_t p = 0; p < s.parts; ++p) over += std::max(0.0, load[p] - s.limit[p]);
      best = std::min(best, {over, -affinity});
      return;
    }
    for (std::size_t p = 0; p < s.parts; ++p) {
      if (left[p] == 0) continue;
      --left[p], load[p] += s.load[e];
      go(e + 1, affinity + s.affinity[e * s.parts + p]);
      ++left[p], load[p] -= s.load[e];
    }
  };
  go(0, 0);
  return best;
}

TEST(ExpertSwaps, NearTheBestOfAllAssignments) {
  std::mt19937 random(11);
  int feasible = 0, kept = 0;
  double got = 0, best = 0;
  for (int trial = 0; trial < 120; ++trial) {
    ExpertSwaps s;
    s.parts = 2 + trial % 3;
    const std::size_t n = 5 + idx(trial % 5);
    double all = 0;
    for (std::size_t e = 0; e < n; ++e) {
      double load = 0;
      for (std::size_t p = 0; p < s.parts; ++p) {
        s.affinity.push_back(static_cast<double>(random() % 100));
        load += s.affinity.back();
      }
      s.load.push_back(load), all += load;
    }
    for (std::size_t p = 0; p < s.parts; ++p) {
      s.room.push_back(static_cast<std::int64_t>(n / s.parts + (p < n % s.parts ? 1 : 0)));
      s.limit.push_back(1.15 * all / static_cast<double>(s.parts));
    }
    const auto [excess, minus] = brute_force(s);
    s.place();
    std::vector<std::int64_t> count(s.parts, 0);
    double affinity = 0;
    for (std::size_t e = 0; e < n; ++e) ++count[idx(s.part[e])], affinity += s.affinity[e * s.parts + idx(s.part[e])];
    EXPECT_EQ(count, s.room);
    if (excess > 0) continue;
    ++feasible;
    if (s.excess() > 1e-6) continue;
    ++kept;
    EXPECT_LE(affinity, -minus + 1e-9);
    got += affinity, best += -minus;
  }
  EXPECT_GT(feasible, 60);
  EXPECT_GE(kept, feasible * 9 / 10);  // single exchanges may end in front of a limit
  EXPECT_GE(got, 0.98 * best);
}

TEST(PlacementOptimiser, ClustersComeTogetherInAllLayers) {
  for (const auto& [ranks, a_node] : {std::pair{4, 8}, {4, 2}, {8, 4}}) {
    const DocumentProfiles p = clustered(3, 16, ranks, 64, 0, 5);
    const ChosenPlacement c = choose_placement(p, {.ranks = ranks, .ranks_per_node = a_node});
    expect_equal_counts(c.placement);
    EXPECT_NEAR(c.home_share, 1, 1e-9) << ranks;
    for (std::int64_t d = 0; d < p.documents(); ++d) EXPECT_EQ(c.homes[idx(d)], c.homes[idx(d % ranks)]);
  }
}

// Of kinds that share nodes, those that pick from each other's experts come onto one node.
TEST(PlacementOptimiser, NodesFirst) {
  std::mt19937 random(2);
  std::vector<std::vector<std::int32_t>> documents;
  for (int d = 0; d < 64; ++d) {  // kinds 0 and 2 share a third of their picks, 1 and 3 too
    std::vector<std::int32_t> picks(16, 0);
    for (int t = 0; t < 90; ++t) {
      const int kind = t % 3 == 0 ? (d + 2) % 4 : d % 4;
      ++picks[idx(kind * 4) + random() % 4];
    }
    documents.push_back(picks);
  }
  const ChosenPlacement c = choose_placement(profiles_of(1, 16, documents), {.ranks = 4, .ranks_per_node = 2});
  const auto rank = c.placement.of_layer(0);
  EXPECT_EQ(rank[0] / 2, rank[8] / 2);
  EXPECT_EQ(rank[4] / 2, rank[12] / 2);
  EXPECT_NE(rank[0] / 2, rank[4] / 2);
  EXPECT_NE(rank[0], rank[8]);
}

double home_share(const DocumentProfiles& p, const ExpertPlacement& placement) {
  std::vector<double> scores(idx(p.documents() * placement.ranks()), 0);
  double all = 0, home = 0;
  for (std::int64_t d = 0; d < p.documents(); ++d)
    for (std::int64_t x = 0; x < p.size(); ++x)
      scores[idx(d * placement.ranks() + placement.of_layer(x / p.experts)[idx(x % p.experts)])] += p.of(d)[x];
  const auto homes = assign_homes(scores, p.tokens, placement.ranks());
  for (std::int64_t d = 0; d < p.documents(); ++d)
    for (int r = 0; r < placement.ranks(); ++r) {
      const double s = scores[idx(d * placement.ranks() + r)];
      all += s, home += r == homes[idx(d)] ? s : 0;
    }
  return home / all;
}

TEST(PlacementOptimiser, NeverWorseThanRandomAndAlwaysTheSame) {
  for (const unsigned seed : {1U, 2U, 3U, 4U})
    for (const double noise : {0.2, 0.6, 1.0}) {
      const DocumentProfiles p = clustered(2, 31, 5, 80, noise, seed);
      const PlacementRequest request{.ranks = 4, .ranks_per_node = 2, .seed = seed};
      const ChosenPlacement c = choose_placement(p, request);
      expect_equal_counts(c.placement);
      EXPECT_LE(c.load_max_over_mean, 1.05 + 1e-9);
      for (const std::uint64_t random : {1U, 2U, 3U})
        EXPECT_GE(c.home_share, home_share(p, ExpertPlacement::random(2, 31, 4, random)) - 1e-9);
      const ChosenPlacement again = choose_placement(p, request);
      EXPECT_EQ(again.placement.to_json(), c.placement.to_json());
      EXPECT_EQ(again.homes, c.homes);
    }
}

// One expert used by all, documents without picks, all alike, kinds that share nothing, one rank, as many ranks as
// experts.
TEST(PlacementOptimiser, AwkwardDocuments) {
  const auto counts = [](const DocumentProfiles& p, int ranks) {
    ChosenPlacement c = choose_placement(p, {.ranks = ranks, .ranks_per_node = 2});
    expect_equal_counts(c.placement);
    return c;
  };
  std::vector<std::vector<std::int32_t>> one(12, std::vector<std::int32_t>(8, 0)), none = one, alike = one;
  for (auto& d : one) d[3] = 50;
  for (auto& d : alike) std::fill(d.begin(), d.end(), 5);
  for (const int ranks : {1, 2, 3, 4, 8}) {
    EXPECT_NEAR(counts(profiles_of(1, 8, one), ranks).load_max_over_mean, ranks, 1e-9);
    counts(profiles_of(1, 8, none), ranks);
    const double limit = 8 % ranks == 0 ? 1 : 3 * ranks / 8.0;  // three of eight experts on a rank of three
    EXPECT_NEAR(counts(profiles_of(1, 8, alike), ranks).load_max_over_mean, limit, 1e-9);
  }
  counts(profiles_of(2, 8, {}), 4);
  EXPECT_THROW(choose_placement(profiles_of(1, 3, {}), {.ranks = 4}), UsageError);
}

TEST(Homes, AreBalancedAndTheSurestFirst) {
  // Three want rank 0, one of them hardly; there is room for two.
  const std::vector<double> scores = {9, 1, 5, 4, 8, 0, 0, 7};
  const std::vector<std::int64_t> tokens = {10, 10, 10, 10};
  EXPECT_EQ(assign_homes(scores, tokens, 2), (std::vector<std::int32_t>{0, 1, 0, 1}));
  std::mt19937 random(8);
  std::vector<double> many;
  std::vector<std::int64_t> lengths;
  for (int d = 0; d < 400; ++d) {
    lengths.push_back(1 + static_cast<std::int64_t>(random() % 50));
    for (int r = 0; r < 4; ++r) many.push_back(static_cast<double>(random() % 100) + (r == 0 ? 60 : 0));
  }
  const auto homes = assign_homes(many, lengths, 4);
  std::vector<std::int64_t> filled(4, 0);
  for (std::size_t d = 0; d < homes.size(); ++d) filled[idx(homes[d])] += lengths[d];
  const double mean = static_cast<double>(std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0})) / 4;
  for (const std::int64_t f : filled) EXPECT_LE(static_cast<double>(f), 1.02 * mean + 50);
}

}  // namespace
}  // namespace emox
