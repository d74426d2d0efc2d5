// Homes of sequences: learned from tokens, planned in equal numbers, against the best of all plans.
#include "parallel/expert/learned_homes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

using Sequences = std::vector<std::vector<std::int32_t>>;

/// Sequences of `kinds` of text: half of their tokens are of words of their kind.
Sequences sequences_of(int kinds, int count, unsigned seed) {
  std::mt19937 random(seed);
  Sequences all;
  for (int s = 0; s < count; ++s) {
    all.emplace_back();
    for (int t = 0; t < 64; ++t) {
      const auto word = static_cast<std::int32_t>(random() % 20);
      all.back().push_back(random() % 2 == 0 ? word : 20 * (1 + s % kinds) + word);
    }
  }
  return all;
}

/// Of a kind's picks 60 % are on its rank.
std::vector<double> picks_of(int kind, int ranks) {
  std::vector<double> picks(idx(ranks), 40.0 / (ranks - 1));
  picks[idx(kind)] = 60;
  return picks;
}

void expect_equal(const HomePlan& plan, int ranks, int cells) {
  std::vector<int> count(idx(ranks * cells), 0);
  for (std::size_t s = 0; s < plan.rank.size(); ++s) ++count.at(idx(plan.cell[s] * ranks + plan.rank[s]));
  for (const int n : count) EXPECT_EQ(n, static_cast<int>(plan.rank.size()) / ranks / cells);
}

TEST(LearnedHomes, KnowWhereTextGoes) {
  constexpr int kRanks = 4;
  LearnedHomes homes(kRanks, 1 << 10);
  EXPECT_EQ(homes.scores({}), std::vector<double>(kRanks, 0.25));
  for (unsigned step = 0; step < 20; ++step) {
    const Sequences batch = sequences_of(kRanks, 16, step);
    for (std::size_t s = 0; s < batch.size(); ++s)
      homes.observe(batch[s], picks_of(static_cast<int>(s % kRanks), kRanks));
    homes.apply();
  }
  const Sequences fresh = sequences_of(kRanks, 32, 1000);
  std::vector<double> scores;
  for (std::size_t s = 0; s < fresh.size(); ++s) {
    const std::vector<double> score = homes.scores(fresh[s]);
    EXPECT_EQ(std::max_element(score.begin(), score.end()) - score.begin(), static_cast<std::ptrdiff_t>(s % kRanks));
    EXPECT_NEAR(std::accumulate(score.begin(), score.end(), 0.0), 1, 1e-9) << "errors of shares add up to nothing";
    scores.insert(scores.end(), score.begin(), score.end());
  }
  const HomePlan plan = plan_homes(scores, kRanks);
  for (std::size_t s = 0; s < fresh.size(); ++s) EXPECT_EQ(plan.rank[s], static_cast<std::int32_t>(s % kRanks));
}

// Errors of two ranks, added up, teach both what one would have learned from all; and a state goes on.
TEST(LearnedHomes, AreTheSameOnAllRanks) {
  LearnedHomes one(3, 256), first(3, 256), second(3, 256);
  for (unsigned step = 0; step < 5; ++step) {
    const Sequences batch = sequences_of(3, 6, step);
    for (std::size_t s = 0; s < batch.size(); ++s) {
      const auto picks = picks_of(static_cast<int>(s % 3), 3);
      one.observe(batch[s], picks);
      (s < 3 ? first : second).observe(batch[s], picks);
    }
    for (std::size_t i = 0; i < first.errors().size(); ++i)
      first.errors()[i] = second.errors()[i] = first.errors()[i] + second.errors()[i];
    one.apply(), first.apply(), second.apply();
    EXPECT_EQ(first.state(), second.state());
    if (step == 2) {
      LearnedHomes resumed(3, 256);
      resumed.restore(second.state());
      second = resumed;
    }
  }
  const Sequences fresh = sequences_of(3, 3, 77);
  for (const auto& s : fresh)
    for (std::size_t r = 0; r < 3; ++r) EXPECT_NEAR(one.scores(s)[r], first.scores(s)[r], 1e-12);
  const std::vector<double> before = one.state();
  one.observe(fresh[0], std::vector<double>(3, 0));  // no picks, nothing learned
  one.apply();
  EXPECT_EQ(one.state(), before);
  EXPECT_THROW(one.observe(fresh[0], std::vector<double>(2, 1)), ShapeError);
  EXPECT_THROW(one.restore(std::vector<double>(5, 0)), ShapeError);
}

TEST(HomePlans, NearTheBestOfAll) {
  std::mt19937 random(3);
  double got = 0, best = 0;
  for (int trial = 0; trial < 60; ++trial) {
    const int ranks = 2 + trial % 2, n = 6;
    std::vector<double> scores;
    for (int i = 0; i < n * ranks; ++i) scores.push_back(static_cast<double>(random() % 1000));
    const HomePlan plan = plan_homes(scores, ranks);
    expect_equal(plan, ranks, 1);
    const auto sum = [&](const std::vector<std::int32_t>& rank) {
      double s = 0;
      for (std::size_t i = 0; i < rank.size(); ++i) s += scores[i * idx(ranks) + idx(rank[i])];
      return s;
    };
    std::vector<std::int32_t> all(idx(n));
    for (int i = 0; i < n; ++i) all[idx(i)] = i * ranks / n;
    double most = 0;
    do most = std::max(most, sum(all));
    while (std::next_permutation(all.begin(), all.end()));
    EXPECT_LE(sum(plan.rank), most + 1e-9);
    got += sum(plan.rank), best += most;
    EXPECT_EQ(plan_homes(scores, ranks).rank, plan.rank);
  }
  EXPECT_GE(got, 0.98 * best);
}

// Half of a rank's sequences ask for nothing but its experts, half for all: every micro-batch gets as many of each.
TEST(HomePlans, CellsAskEquallyMuchOfARank) {
  std::vector<double> scores;
  for (int s = 0; s < 16; ++s)
    for (int r = 0; r < 2; ++r) scores.push_back(s % 4 < 2 ? (r == s % 2 ? 1.0 : 0.0) : (r == s % 2 ? 0.51 : 0.49));
  for (int s = 0; s < 16; ++s)  // 0 has two that are its alone for every one of rank 1
    if (s % 8 == 1) scores[idx(2 * s)] = 0.45, scores[idx(2 * s + 1)] = 0.55;
  for (const int cells : {1, 2, 4, 8}) {
    const HomePlan plan = plan_homes(scores, 2, cells);
    expect_equal(plan, 2, cells);
    std::vector<double> asked(idx(cells), 0);
    for (std::size_t s = 0; s < 16; ++s) asked[idx(plan.cell[s])] += scores[2 * s];
    const auto [least, most] = std::minmax_element(asked.begin(), asked.end());
    if (cells == 8) continue;  // one sequence of a rank each: nothing to choose from
    EXPECT_LE(*most - *least, 0.75) << cells;
  }
}

TEST(HomePlans, AwkwardScores) {
  for (const int ranks : {1, 2, 8}) {
    expect_equal(plan_homes(std::vector<double>(idx(ranks * ranks * 4), 0), ranks, 2), ranks, 2);
    std::vector<double> one(idx(ranks * ranks * 4), 0);  // all want rank 0
    for (std::size_t s = 0; s < one.size(); s += idx(ranks)) one[s] = 1;
    expect_equal(plan_homes(one, ranks, 4), ranks, 4);
  }
  EXPECT_TRUE(plan_homes({}, 4).rank.empty());
  EXPECT_THROW(plan_homes(std::vector<double>(6, 0), 2), UsageError);
  EXPECT_THROW(plan_homes(std::vector<double>(8, 0), 2, 4), UsageError);
}

}  // namespace
}  // namespace emox
