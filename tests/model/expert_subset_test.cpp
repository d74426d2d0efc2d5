// The file of a subset, budgets, and random choices.
#include "model/modularity/expert_subset.h"

#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "runtime/core/error.h"

namespace emox::test {
namespace {

ExpertSubset example() {
  ExpertSubset s{
      6, 2, {{0, 3}, {1}}, {{0.1, 0.2, 0.25, 1.0 / 3}, {0.5, 0.1, 0.1, 0.3}}, nlohmann::ordered_json::object()};
  s.provenance["method"] = "layerwise";
  return s;
}

std::string error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const UsageError& e) {
    return e.message();
  }
  return "no error";
}

TEST(ExpertSubset, ComesBackFromItsJson) {
  const ExpertSubset s = example();
  const auto json = s.to_json();
  EXPECT_EQ(json.at("kept").dump(), "[[0,3,4,5],[1,4,5]]");
  const ExpertSubset back = ExpertSubset::from_json(nlohmann::json::parse(json.dump()), "x.json");
  EXPECT_EQ(back.routed, s.routed);
  EXPECT_EQ(back.scores, s.scores);
  EXPECT_EQ(back.to_json(), json);
  EXPECT_EQ(back.keep(0), 4);
  EXPECT_EQ(back.mean_keep(), 4);
  EXPECT_FALSE(back.uniform());
}

TEST(ExpertSubset, RefusesWhatItDidNotWrite) {
  const auto broken = [](const char* pointer, nlohmann::json value) {
    nlohmann::json json = nlohmann::json::parse(example().to_json().dump());
    json[nlohmann::json::json_pointer(pointer)] = std::move(value);
    return error_of([&] { (void)ExpertSubset::from_json(json, "x.json"); });
  };
  const auto expect = [](const std::string& got, const char* part) {
    EXPECT_NE(got.find(part), std::string::npos) << got;
    EXPECT_NE(got.find("x.json is not a subset of experts"), std::string::npos) << got;
  };
  expect(broken("/format", "placement"), "format is \"placement\"");
  expect(broken("/version", 2), "version is 2");
  expect(broken("/kept/0/1", 0), "kept[0][1] is 0: not larger than the id before it");
  expect(broken("/kept/0/1", 6), "kept[0][1] is 6: not a whole number in [0, 5]");
  expect(broken("/kept/1/0", 1.5), "kept[1][0] is 1.5");
  expect(broken("/kept/1", {4, 5}), "not a list with a routed expert");
  expect(broken("/kept/1", {1, 4}), "shared expert 5");
  expect(broken("/kept", nlohmann::json::array({{0, 4, 5}})), "not a list of 2 layers");
  expect(broken("/scores/0", {0.5}), "not a list of 4 scores");
  expect(broken("/scores/0/0", "a"), "scores[0][0] is \"a\"");
  expect(broken("/shared_experts", 6), "shared_experts is 6");
  expect(broken("/provenance", 1), "provenance is 1");
  expect(error_of([] { (void)ExpertSubset::from_json(nlohmann::json::array(), "x.json"); }), "not an object");
  EXPECT_NE(error_of([] { (void)ExpertSubset::from_file("/nowhere.json"); }).find("cannot be read"), std::string::npos);
}

TEST(ExpertSubset, KnowsItsModel) {
  ModelConfig m;
  m.layers = 2, m.num_experts = 6, m.shared_experts = 2;
  example().check_model(m, "x.json");
  m.layers = 3;
  EXPECT_NE(error_of([&] { example().check_model(m, "x.json"); }).find("2 layers with 6 experts"), std::string::npos);
  m.num_experts = 0;
  EXPECT_NE(error_of([&] { example().check_model(m, "x.json"); }).find("dense"), std::string::npos);
}

TEST(ExpertSubset, BudgetsCountSharedExperts) {
  ModelConfig m;
  m.layers = 3, m.num_experts = 9, m.shared_experts = 1;
  EXPECT_EQ(check_budgets(m, {4}, "--keep"), (std::vector<std::int64_t>{4, 4, 4}));
  EXPECT_EQ(check_budgets(m, {2, 9, 3}, "--keep"), (std::vector<std::int64_t>{2, 9, 3}));
  EXPECT_NE(error_of([&] { (void)check_budgets(m, {1}, "--keep"); }).find("keep 2 to 9 of 9"), std::string::npos);
  EXPECT_NE(error_of([&] { (void)check_budgets(m, {10}, "--keep"); }).find("--keep = 10"), std::string::npos);
  EXPECT_NE(error_of([&] {
              (void)check_budgets(m, {4, 4}, "--keep");
            }).find("one for each of the 3"),
            std::string::npos);
}

}  // namespace
}  // namespace emox::test
