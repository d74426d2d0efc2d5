// Which parameters a model has, how many, and what they begin with (spec 1.3, 1.4 and 8.1).
#include <gtest/gtest.h>

#include <fmt/format.h>

#include <cmath>
#include <map>
#include <memory>
#include <set>

#include "model/layers/attention.h"
#include "model/layers/feed_forward.h"
#include "model/moe/moe_layer.h"
#include "model/transformer/language_model.h"
#include "runtime/core/idx.h"
#include "tests/support/support.h"

namespace emox {
namespace {

ModelConfig small() {
  ModelConfig c;
  c.d_model = 48, c.layers = 3, c.heads = 4, c.vocab_size = 61, c.sequence_length = 16;
  c.num_experts = 6, c.top_k = 3, c.shared_experts = 2, c.expert_ff = 20, c.dense_ff = 40;
  return c;
}

std::map<std::string, std::string> shapes_of(const ParameterStore& store) {
  std::map<std::string, std::string> shapes;
  for (const NamedParameter& p : store.named())
    EXPECT_TRUE(shapes.emplace(p.name, p.slot.shape.str()).second) << p.name << " twice";
  return shapes;
}

std::map<std::string, std::string> expected_shapes(const ModelConfig& c) {
  const std::int64_t d = c.d_model;
  std::map<std::string, std::string> s;
  const auto add = [&](const std::string& name, Shape shape) { s[name] = shape.str(); };
  add("model.embed_tokens.weight", {c.vocab_size, d});
  add("lm_head.weight", {c.vocab_size, d});
  add("model.norm.weight", {d});
  for (std::int64_t l = 0; l < c.layers; ++l) {
    const std::string layer = fmt::format("model.layers.{}.", l);
    for (const char* norm : {"pre_attention_layernorm", "pre_feedforward_layernorm"})
      add(layer + norm + ".weight", {d});
    for (const char* part : {"q", "k", "v", "o"}) add(layer + "self_attn." + part + "_proj.weight", {d, d});
    std::vector<std::string> bodies;
    if (c.is_moe()) add(layer + "mlp.gate.weight", {c.num_experts, d});
    for (std::int64_t e = 0; e < c.num_experts; ++e) bodies.push_back(fmt::format("{}mlp.experts.{}.", layer, e));
    if (!c.is_moe()) bodies.push_back(layer + "mlp.");
    const std::int64_t f = c.is_moe() ? c.expert_ff : c.dense_ff;
    for (const std::string& body : bodies) {
      add(body + "gate_proj.weight", {f, d});
      add(body + "up_proj.weight", {f, d});
      add(body + "down_proj.weight", {d, f});
    }
  }
  return s;
}

TEST(Parameters, NamesAndShapesArePublished) {
  Context ctx;
  ModelConfig c = small();
  const LanguageModel moe(c, ctx, false);
  EXPECT_EQ(shapes_of(moe.parameters()), expected_shapes(c));
  EXPECT_FALSE(moe.parameters().training());
  c.num_experts = 0;
  const LanguageModel dense(c, ctx, true);
  EXPECT_EQ(shapes_of(dense.parameters()), expected_shapes(c));
  EXPECT_TRUE(dense.parameters().training());
}

// No two names share an element, and everything between the named parts is padding of less than 128 elements.
TEST(Parameters, CoverTheFlatBufferOnce) {
  Context ctx;
  const LanguageModel model(small(), ctx, false);
  for (const ParameterGroup group : kParameterGroups) {
    std::vector<int> owners(idx(model.parameters().flat_size(group)));
    for (const NamedParameter& p : model.parameters().named())
      for (std::int64_t i = 0; p.slot.group == group && i < p.slot.shape.numel(); ++i) ++owners[idx(p.slot.offset + i)];
    int gap = 0;
    for (const int n : owners) {
      ASSERT_LE(n, 1);
      gap = n == 0 ? gap + 1 : 0;
      ASSERT_LT(gap, 128);
    }
  }
}

TEST(Parameters, OnlyTheEmbeddingIsNotDecayed) {
  Context ctx;
  const LanguageModel model(small(), ctx, false);
  const NamedParameter& embedding = model.parameters().named().front();
  ASSERT_EQ(embedding.name, "model.embed_tokens.weight");
  for (const ParameterGroup group : kParameterGroups) {
    const auto& runs = model.parameters().runs(group);
    for (const ParameterStore::Run& run : runs)
      EXPECT_EQ(run.decay,
                group != embedding.slot.group || run.begin >= embedding.slot.offset + embedding.slot.shape.numel());
    EXPECT_EQ(runs.back().end, model.parameters().flat_size(group));
  }
}

// Published sizes, counted by the layers themselves without allocating anything.
std::int64_t published_count(std::int64_t vocab, std::int64_t experts) {
  ModelConfig c;
  c.d_model = 2048, c.layers = 16, c.heads = 16, c.num_experts = experts, c.top_k = 8, c.shared_experts = 1,
  c.expert_ff = 1024;
  ParameterStore store;
  std::unique_ptr<ExpertParallel> sharding;
  if (experts > 0) sharding = std::make_unique<ExpertParallel>(c.layers, c.routed_experts());
  std::vector<Attention> attention;
  std::vector<MoeLayer> moe;
  std::vector<FeedForward> dense;
  for (std::int64_t l = 0; l < c.layers; ++l) {
    attention.emplace_back(c, l, store);
    if (experts > 0)
      moe.emplace_back(c, l, store, *sharding);
    else
      dense.emplace_back(2048, 8192, fmt::format("model.layers.{}.mlp.", l), store);
  }
  const std::int64_t norms = (c.layers + 1) * c.d_model;  // before each feed-forward layer, and the last
  return store.element_count() + norms + 2 * vocab * c.d_model;
}

TEST(Parameters, PublishedCounts) {
  EXPECT_EQ(published_count(100352, 128), 13568641024);
  EXPECT_EQ(published_count(100278, 128), 13568337920);
  EXPECT_EQ(published_count(100352, 32), 3901818880);
  EXPECT_EQ(published_count(100278, 64), 7123789824);
  EXPECT_EQ(published_count(100278, 8), 1484810240);
  EXPECT_EQ(published_count(100352, 0), 1484851200);
}

// A normal of standard deviation 0.02 cut at three: variance 0.02^2 (1 - 6 phi(3) / (2 Phi(3) - 1)) = (0.9866 *
// 0.02)^2.
TEST(Parameters, StartAsATruncatedNormal) {
  Context ctx;
  ModelConfig c = small();
  c.d_model = 64, c.vocab_size = 400, c.expert_ff = 64;
  LanguageModel model(c, ctx, false);
  model.initialize(ctx, 5);
  constexpr double kDeviation = 0.02 * 0.98658;
  std::set<float> firsts;
  for (const NamedParameter& p : model.parameters().named()) {
    SCOPED_TRACE(p.name);
    const auto w = test::values_of<float>(model.parameters().weight(p.slot));
    if (p.name.find("norm") != std::string::npos) {
      EXPECT_EQ(w, std::vector<float>(w.size(), 1.0F));
      continue;
    }
    firsts.insert(w[0]);
    double sum = 0, squares = 0, fourth = 0;
    for (const float x : w) {
      ASSERT_LE(std::abs(x), 0.06F);
      sum += x, squares += double{x} * x, fourth += std::pow(double{x}, 4);
    }
    const auto n = static_cast<double>(w.size());
    EXPECT_NEAR(sum / n, 0.0, 5 * kDeviation / std::sqrt(n));
    EXPECT_NEAR(std::sqrt(squares / n), kDeviation, 5 * kDeviation / std::sqrt(2 * n));
    // Kurtosis 2.839 of the cut normal; of n draws it scatters by about sqrt(20 / n).
    EXPECT_NEAR(fourth / n / std::pow(squares / n, 2), 2.839, 5 * std::sqrt(20 / n));
  }
  EXPECT_EQ(firsts.size(), expected_shapes(c).size() - 2 * 3 - 1);  // every matrix draws its own numbers
}

TEST(Parameters, StartDependsOnTheSeedOnly) {
  const auto start = [](std::uint64_t seed, int threads) {
    Context ctx;
    ctx.threads = threads;
    LanguageModel model(small(), ctx, false);
    model.initialize(ctx, seed);
    std::vector<float> all;
    for (const ParameterGroup group : kParameterGroups) {
      const auto part = test::values_of<float>(model.parameters().weight(model.parameters().flat(group)));
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  };
  EXPECT_EQ(start(5, 1), start(5, 2));
  EXPECT_NE(start(5, 1), start(6, 1));
}

}  // namespace
}  // namespace emox
