// What is said about a checkpoint whose arrays are not those of a model.
#include "parallel/checkpoint/arrays.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

namespace emox {
namespace {

using Lines = std::vector<std::string>;

ManifestTensor saved(const std::string& name, Shape shape, const std::string& role = "weight") {
  return {.name = name,
          .role = role,
          .shape = shape,
          .begin = 0,
          .end = shape.numel(),
          .file = {},
          .dataset = {},
          .checksum = {}};
}

TEST(CheckpointFit, TheSameArraysFitHoweverTheyAreCut) {
  std::vector<ManifestTensor> a = {saved("x.weight", {4, 6}), saved("x.weight", {4, 6}),
                                   saved("x.weight", {4, 6}, "exp_avg"), saved("n.weight", {6})};
  a[0].end = a[1].begin = 10;
  const std::vector<WantedArray> weights = {{"n.weight", "weight", {6}}, {"x.weight", "weight", {4, 6}}};
  EXPECT_EQ(describe_other_arrays(a, weights), Lines{});  // moments that nobody wants do not count
  std::vector<WantedArray> moments = weights;
  moments.push_back({"x.weight", "exp_avg", {4, 6}});
  EXPECT_EQ(describe_other_arrays(a, moments), Lines{});
}

TEST(CheckpointFit, EveryDifferenceIsListedWithBothShapes) {
  std::vector<ManifestTensor> a;
  std::vector<WantedArray> b;
  for (int layer = 0; layer < 8; ++layer) {
    const auto gate = fmt::format("model.layers.{}.mlp.gate.weight", layer);
    a.push_back(saved(gate, {24, 64}));
    b.push_back({gate, "weight", {32, 64}});
    for (int e = 0; e < 32; ++e) {
      const auto expert = fmt::format("model.layers.{}.mlp.experts.{}.up_proj.weight", layer, e);
      b.push_back({expert, "weight", {48, 64}});
      if (e < 24) a.push_back(saved(expert, {48, layer == 5 ? 65 : 64}));
    }
  }
  a.push_back(saved("model.layers.3.mlp.bias", {7}));
  EXPECT_EQ(
      describe_other_arrays(a, b),
      (Lines{"model.layers.*.mlp.experts.*.up_proj.weight (24 of them): [48, 65] in the checkpoint, [48, 64] here",
             "model.layers.*.mlp.gate.weight (8 of them): [24, 64] in the checkpoint, [32, 64] here",
             "model.layers.*.mlp.experts.*.up_proj.weight (64 of them): nothing in the checkpoint, [48, 64] here",
             "model.layers.3.mlp.bias: [7] in the checkpoint, nothing here"}));
}

TEST(CheckpointFit, MomentsAreToldWhereTheWeightFits) {
  const std::vector<ManifestTensor> a = {saved("x.weight", {4}), saved("y.weight", {4}),
                                         saved("y.weight", {4}, "exp_avg")};
  const std::vector<WantedArray> b = {{"x.weight", "weight", {4}},
                                      {"x.weight", "exp_avg", {4}},
                                      {"y.weight", "weight", {5}},
                                      {"y.weight", "exp_avg", {5}}};
  EXPECT_EQ(describe_other_arrays(a, b), (Lines{"y.weight: [4] in the checkpoint, [5] here",
                                                "x.weight (exp_avg): nothing in the checkpoint, [4] here"}));
}

TEST(CheckpointFit, NoMoreLinesThanAPersonReads) {
  std::vector<WantedArray> b;
  for (int i = 0; i < 30; ++i) b.push_back({fmt::format("part{}.weight", i), "weight", {i + 1}});
  const Lines lines = describe_other_arrays({}, b);
  ASSERT_EQ(lines.size(), 12U);
  EXPECT_EQ(lines.back(), "... and 19 more such lines");
  b.resize(12);
  EXPECT_EQ(describe_other_arrays({}, b).size(), 12U);
  EXPECT_EQ(describe_other_arrays({}, b).back().find("more such"), std::string::npos);
}

}  // namespace
}  // namespace emox
