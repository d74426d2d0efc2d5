// Modularity of a model: the same numbers on any number of ranks and however much a pass reads.
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "data/tokenize/tokenizer.h"
#include "launch/analysis/modularity/report.h"
#include "launch/run/sharding.h"
#include "runtime/core/error.h"
#include "tests/support/ranks.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox {
namespace {

class ModularityOfAModel : public testing::Test {
 protected:
  ModularityOfAModel() : recipe_(test::tiny_recipe(test::make_text_sources(directory_.path()))) {
    std::vector<SourceSpec> specs;
    for (const std::string& s : recipe_.data.source) specs.push_back(SourceSpec::parse(s));
    held_out_ = read_held_out(specs, 7, *make_tokenizer("byte")).sources;
  }
  Modularity measure(Communicator& comm, std::int64_t max_tokens, std::int64_t expert_parallel) const {
    Context ctx;
    ParallelConfig parallel = recipe_.parallel;
    parallel.expert_parallel = expert_parallel;
    Sharding sharding(comm, recipe_.model, parallel);
    LanguageModel model(recipe_.model, ctx, false, sharding.experts());
    model.initialize(ctx, 4);
    for (const NamedParameter& p : model.parameters().named()) {  // decided routers
      float* w = model.parameters().weight(p.slot).data<float>();
      for (std::int64_t i = 0; p.matrix && i < p.slot.shape.numel(); ++i) w[i] *= 8;
    }
    Arena measure = Arena::measuring({});
    (void)model.reserve(measure, max_tokens);
    model.reserve_scratch(measure, max_tokens);
    Arena arena({}, measure.peak());
    Activations activations = model.reserve(arena, max_tokens);
    model.reserve_scratch(arena, max_tokens);
    DeviceBatch batch({}, max_tokens);
    HeldOutRouting routing(model, held_out_);
    (void)evaluate(ctx, model, comm,
                   {.held_out = held_out_, .eos = kByteEos, .step = 17, .hooks = {.observer = routing.observer()}},
                   {activations, batch, max_tokens});
    return routing.measure(comm, 17);
  }

  test::TemporaryDirectory directory_;
  Recipe recipe_;
  std::vector<HeldOut> held_out_;
};

TEST_F(ModularityOfAModel, IsTheSameOnAnyNumberOfRanksAndInAnyPasses) {
  const Modularity one = measure(*make_self_communicator(), 64, 1);  // a window at a time
  std::int64_t tokens = 0;
  for (const HeldOut& source : held_out_)
    for (const auto& document : source.documents) tokens += static_cast<std::int64_t>(document.size()) + 1;
  EXPECT_EQ(one.tokens, tokens);
  EXPECT_EQ(one.documents, 28);
  EXPECT_EQ(one.domains, 4);
  ASSERT_EQ(one.layers.size(), 2U);
  EXPECT_EQ(one.tops, (std::vector<std::int64_t>{1, 2}));
  // Weights without any training know tokens, and topics only as far as these have their own tokens.
  for (const ModularityRow& row : one.layers) {
    EXPECT_GT(row.surface.value - row.surface.half, row.surface.chance);
    EXPECT_GT(row.surface_bits.value, row.topic_bits.value);
  }
  EXPECT_EQ(measure(*make_self_communicator(), 400, 1).to_json().dump(), one.to_json().dump());
  for (const auto& [ranks, expert_parallel] : {std::pair{2, 2}, std::pair{3, 1}, std::pair{4, 2}}) {
    test::run_ranks(ranks, [&, sharded = expert_parallel](Communicator& comm) {
      const Modularity m = measure(comm, 128, sharded);
      if (comm.rank() == 0)
        EXPECT_EQ(m.to_json().dump(), one.to_json().dump()) << comm.size() << " ranks";
      else
        EXPECT_TRUE(m.layers.empty());
    });
  }
}

TEST_F(ModularityOfAModel, TextFitsAScreenWhateverTheLayers) {
  Modularity m = measure(*make_self_communicator(), 256, 1);
  for (const std::size_t layers : {2U, 14U, 15U, 48U}) {
    m.layers.resize(layers, m.layers[0]);
    const std::string text = m.to_text();
    EXPECT_LE(std::count(text.begin(), text.end(), '\n'), 24) << text;
    std::istringstream in(text);
    for (std::string line; std::getline(in, line);) EXPECT_LE(line.size(), 80U) << line;
    EXPECT_NE(text.find(fmt::format("\n{:>4} ", layers - 1)), std::string::npos) << text;
    EXPECT_EQ(text.find("of 48 layers") != std::string::npos, layers == 48) << text;
  }
  EXPECT_NE(m.to_text().find(fmt::format("mean  {:.3f}", m.mean.concentration[0].value)), std::string::npos)
      << m.to_text();
}

// Pools at evaluation limit the picks: that is said. With a pool of k, all tokens of a window pick the same k experts.
TEST_F(ModularityOfAModel, SaysWhenPicksWereInsidePools) {
  const Modularity free = measure(*make_self_communicator(), 256, 1);
  EXPECT_EQ(free.to_text().find("in pools"), std::string::npos) << free.to_text();
  EXPECT_EQ(free.to_json().at("eval_pool"), 0);
  ASSERT_EQ(recipe_.model.routed_top_k(), 2);
  recipe_.model.eval_pool = 2;
  const Modularity m = measure(*make_self_communicator(), 256, 1);
  EXPECT_NE(m.to_text().find("routed experts in pools of 2; +- 95 %"), std::string::npos) << m.to_text();
  EXPECT_EQ(m.to_json().at("eval_pool"), 2);
  EXPECT_LE(m.mean.concentration[0].value, 0.5);
  const Interval &two = m.mean.concentration[1], &before = free.mean.concentration[1];
  EXPECT_GT(two.value - two.half, before.value + before.half);
}

TEST_F(ModularityOfAModel, ADenseModelHasNone) {
  recipe_.model.num_experts = 0;
  EXPECT_THROW(measure(*make_self_communicator(), 64, 1), UsageError);
}

}  // namespace
}  // namespace emox
