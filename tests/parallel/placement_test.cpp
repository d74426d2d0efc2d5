#include "parallel/expert/placement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "tests/support/support.h"

namespace emox {
namespace {

void expect_balanced(const ExpertPlacement& p) {
  for (std::int64_t l = 0; l < p.layers(); ++l) {
    std::vector<std::int64_t> held;
    std::set<std::int32_t> all;
    for (int r = 0; r < p.ranks(); ++r) {
      const auto experts = p.experts_of(l, r);
      held.push_back(static_cast<std::int64_t>(experts.size()));
      EXPECT_TRUE(std::is_sorted(experts.begin(), experts.end()));
      for (const std::int32_t e : experts) {
        EXPECT_EQ(p.of_layer(l)[idx(e)], r);
        all.insert(e);
      }
    }
    EXPECT_EQ(all.size(), idx(p.experts()));
    EXPECT_LE(*std::max_element(held.begin(), held.end()) - *std::min_element(held.begin(), held.end()), 1);
    EXPECT_EQ(*std::max_element(held.begin(), held.end()), (p.experts() + p.ranks() - 1) / p.ranks());
  }
}

TEST(Placement, CountsDifferByAtMostOne) {
  for (const std::int64_t experts : {1, 2, 7, 24, 31, 127, 128})
    for (int ranks = 1; ranks <= std::min<std::int64_t>(experts, 33); ++ranks) {
      SCOPED_TRACE(testing::Message() << experts << " experts on " << ranks);
      expect_balanced(ExpertPlacement::block(2, experts, ranks));
      expect_balanced(ExpertPlacement::random(3, experts, ranks, 9));
    }
}

TEST(Placement, BlockIsConsecutive) {
  const auto p = ExpertPlacement::block(2, 127, 8);
  for (std::int64_t l = 0; l < 2; ++l) {
    const auto row = p.of_layer(l);
    EXPECT_TRUE(std::is_sorted(row.begin(), row.end()));
  }
}

TEST(Placement, RandomDependsOnSeedAndLayer) {
  const auto a = ExpertPlacement::random(2, 64, 4, 1), b = ExpertPlacement::random(2, 64, 4, 1),
             c = ExpertPlacement::random(2, 64, 4, 2);
  EXPECT_EQ(a.to_json(), b.to_json());
  EXPECT_NE(a.to_json(), c.to_json());
  EXPECT_FALSE(std::equal(a.of_layer(0).begin(), a.of_layer(0).end(), a.of_layer(1).begin()));
}

// Every pair of experts shares a rank as often as chance says: (m - 1) / (E - 1).
TEST(Placement, RandomIsUniform) {
  constexpr std::int64_t kLayers = 4000;
  const auto p = ExpertPlacement::random(kLayers, 8, 4, 3);
  for (std::size_t a = 0; a < 8; ++a)
    for (std::size_t b = a + 1; b < 8; ++b) {
      int together = 0;
      for (std::int64_t l = 0; l < kLayers; ++l) together += p.of_layer(l)[a] == p.of_layer(l)[b] ? 1 : 0;
      EXPECT_NEAR(together / double{kLayers}, 1.0 / 7, 5 * std::sqrt(1.0 / 7 / kLayers));
    }
}

TEST(Placement, SurvivesItsFile) {
  const test::TemporaryDirectory directory;
  const auto p = ExpertPlacement::random(3, 13, 4, 5);
  const auto file = directory.path() / "placement.json";
  std::ofstream(file) << p.to_json().dump();
  EXPECT_EQ(ExpertPlacement::from_file(file, 3, 13, 4).to_json(), p.to_json());
  std::ofstream(file) << nlohmann::json{{"step", 3}, {"placement", p.to_json()}}.dump();  // as in a manifest
  EXPECT_EQ(ExpertPlacement::from_file(file, 3, 13, 4).to_json(), p.to_json());
}

void expect_refused(const std::string& text, const std::vector<std::string>& parts) {
  try {
    (void)ExpertPlacement::from_json(nlohmann::json::parse(text), "p.json", 1, 4, 2);
    ADD_FAILURE() << text;
  } catch (const UsageError& e) {
    for (const std::string& part : parts) EXPECT_NE(e.message().find(part), std::string::npos) << e.message();
  }
}

TEST(Placement, WhatDoesNotFitIsRefused) {
  expect_refused(R"({"expert_parallel": 4, "table": [[0,1,2,3]]})", {"p.json", "on 4 ranks", "expert_parallel is 2"});
  expect_refused(R"({"expert_parallel": 2, "table": [[0,1,0,1],[0,1,0,1]]})", {"2 layers", "has 1"});
  expect_refused(R"({"expert_parallel": 2, "table": [[0,1,0]]})", {"layer 0", "3 experts", "4 routed"});
  expect_refused(R"({"expert_parallel": 2, "table": [[0,1,0,2]]})", {"expert 3 on rank 2"});
  expect_refused(R"({"expert_parallel": 2, "table": [[0,0,0,1]]})", {"3 experts on rank 0", "1 on rank 1"});
  expect_refused(R"({"expert_parallel": 2, "table": 7})", {"not a placement"});
  expect_refused(R"([1])", {"not a placement"});
  EXPECT_THROW(ExpertPlacement::block(1, 3, 4), UsageError);
  EXPECT_THROW(ExpertPlacement::from_file("/nonexistent/p.json", 1, 4, 2), UsageError);
}

}  // namespace
}  // namespace emox
