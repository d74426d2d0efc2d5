// The same mathematics on any number of ranks (design 4.6): one step, fifty steps, and the same run twice.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <functional>

#include "tests/support/agreement.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox {
namespace {

using test::NamedValues;
using test::RunOptions;
using test::train_on_threads;
using test::TrainingRun;

// Sanitizers make a step twenty times slower; what they look for is there in the first ones.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr std::int64_t kSeries = 8;
#else
constexpr std::int64_t kSeries = 50;
#endif

struct Variant {
  const char* name;
  std::function<void(Recipe&)> change;
};

void PrintTo(const Variant& v, std::ostream* out) { *out << v.name; }

const Variant kVariants[] = {
    {"emo", [](Recipe&) {}},
    {"standard", [](Recipe& r) { r.model.pool = PoolMode::Off; }},
    {"fixed",
     [](Recipe& r) {
       r.model.pool = PoolMode::Fixed;
       r.model.eos = EosRule::Reference;
     }},
    {"label",
     [](Recipe& r) {
       r.model.pool = PoolMode::Label;
       r.model.num_experts = 13;
     }},
    {"half_free",
     [](Recipe& r) {
       r.model.pool_free_share = 0.5;
       r.model.pool_max = 5;
     }},
    {"dense", [](Recipe& r) { r.model.num_experts = 0; }},
    {"bias",
     [](Recipe& r) {
       r.model.balance = BalanceMode::Bias;
       r.model.bias_rate = 0.01;
     }},
    {"normalised", [](Recipe& r) { r.model.normalize_gates = true; }},
    {"uneven",
     [](Recipe& r) {
       r.train.batch_sequences = 10;
       r.train.micro_batch_sequences = 10;
     }},
};

class TrainRanks : public testing::TestWithParam<Variant> {
 protected:
  Recipe recipe() const {
    Recipe r = test::tiny_recipe(test::make_text_sources(directory_.path()));
    GetParam().change(r);
    r.validate(1);
    return r;
  }
  test::TemporaryDirectory directory_;
};

// From random weights, and from weights that have learned to route.
TEST_P(TrainRanks, OneStepIsTheSame) {
  const Recipe r = recipe();
  const bool moe = r.model.is_moe();
  const NamedValues trained = train_on_threads(r, {.ranks = 1, .steps = 20}).weights;
  for (const NamedValues* start : {static_cast<const NamedValues*>(nullptr), &trained}) {
    const auto run = [&](int ranks) {
      return train_on_threads(r, {.ranks = ranks, .first_step = 21, .record_routing = moe, .start = start});
    };
    const TrainingRun one = run(1);
    ASSERT_GT(one.steps[0].grad_norm, 1e-3);
    if (moe) {
      ASSERT_EQ(one.steps[0].lb > 0.05, r.model.balance == BalanceMode::Aux);  // 0.1 when balanced
    }
    for (const int ranks : {2, 3, 4}) {
      SCOPED_TRACE(testing::Message() << ranks << " ranks, " << (start == nullptr ? "first" : "trained") << " weights");
      test::expect_same_step(run(ranks), one, moe);
    }
  }
}

TEST_P(TrainRanks, FiftyStepsAgree) {
  const Recipe r = recipe();
  const auto run = [&](int ranks) {
    return train_on_threads(r, {.ranks = ranks, .steps = kSeries, .record_routing = r.model.is_moe()});
  };
  const TrainingRun one = run(1);
  EXPECT_LT(one.steps.back().ce, one.steps.front().ce - 0.02 * static_cast<double>(kSeries));  // it learns
  for (const int ranks : {2, 3, 4}) {
    const TrainingRun many = run(ranks);
    const test::SeriesAgreement agreement = test::series_agreement(many, one);
    EXPECT_TRUE(agreement.ok) << ranks << " ranks:\n" << agreement.text;
    std::printf("  %d ranks: %s\n", ranks, agreement.text.c_str());
    EXPECT_EQ(many.draws, one.draws);
    EXPECT_LE(test::tensor_deviation(many.weights, one.weights).largest, 1e-2);
  }
}

std::string name_of(const testing::TestParamInfo<Variant>& variant) { return variant.param.name; }
INSTANTIATE_TEST_SUITE_P(All, TrainRanks, testing::ValuesIn(kVariants), name_of);

TEST(TrainAgain, TheSameRanksGiveTheSameBits) {
  const test::TemporaryDirectory directory;
  const Recipe r = test::tiny_recipe(test::make_text_sources(directory.path()));
  for (const int ranks : {1, 2, 4}) {
    const RunOptions options{.ranks = ranks, .steps = std::min<std::int64_t>(kSeries, 30)};
    const TrainingRun a = train_on_threads(r, options), b = train_on_threads(r, options);
    for (std::size_t s = 0; s < a.steps.size(); ++s) {
      EXPECT_EQ(a.steps[s].loss(), b.steps[s].loss()) << "step " << s + 1;
      EXPECT_EQ(a.steps[s].grad_norm, b.steps[s].grad_norm) << "step " << s + 1;
    }
    EXPECT_EQ(a.weights, b.weights);
  }
}

// After a requeue the same ranks may lie on other nodes. Gradients are added up inside nodes first where all have as
// many ranks, several each: then rounding depends on how many, and only on that. (two_level goes by way of the nodes:
// there they are part of the dispatch.)
TEST(TrainAgain, OtherNodesGiveTheSameBits) {
  const test::TemporaryDirectory directory;
  Recipe r = test::tiny_recipe(test::make_text_sources(directory.path()));
  for (const std::int64_t expert_parallel : {1, 2}) {
    r.parallel.expert_parallel = expert_parallel;
    const auto run = [&](int per_node) {
      return train_on_threads(r, {.ranks = 4, .ranks_per_node = per_node, .steps = 5});
    };
    const auto expect_same = [&](const TrainingRun& a, const TrainingRun& b) {
      for (std::size_t s = 0; s < a.steps.size(); ++s) {
        EXPECT_EQ(b.steps[s].loss(), a.steps[s].loss()) << "step " << s + 1;
        EXPECT_EQ(b.steps[s].grad_norm, a.steps[s].grad_norm) << "step " << s + 1;
      }
      EXPECT_EQ(b.weights, a.weights);
    };
    const TrainingRun one = run(0), twos = run(2);
    for (const int per_node : {1, 3}) expect_same(one, run(per_node));
    expect_same(twos, run(2));
    for (std::size_t s = 0; s < one.steps.size(); ++s) {
      EXPECT_NEAR(twos.steps[s].loss(), one.steps[s].loss(), 1e-5) << "step " << s + 1;
      EXPECT_NEAR(twos.steps[s].grad_norm, one.steps[s].grad_norm, 1e-5 * one.steps[s].grad_norm) << "step " << s + 1;
    }
  }
}

// A document without a pool is one of the standard model: with all of them free, bit for bit.
TEST(TrainAgain, AllDocumentsFreeIsTheStandardModel) {
  const test::TemporaryDirectory directory;
  Recipe r = test::tiny_recipe(test::make_text_sources(directory.path()));
  const RunOptions options{.ranks = 2, .steps = 5, .record_routing = true};
  const TrainingRun pools = train_on_threads(r, options);
  r.model.pool_free_share = 1;
  const TrainingRun free = train_on_threads(r, options);
  r.model.pool_free_share = 0;
  r.model.pool = PoolMode::Off;
  const TrainingRun standard = train_on_threads(r, options);
  EXPECT_EQ(free.weights, standard.weights);
  for (std::size_t s = 0; s < standard.steps.size(); ++s) {
    EXPECT_EQ(free.steps[s].loss(), standard.steps[s].loss()) << "step " << s + 1;
    EXPECT_EQ(free.routing[s].ids, standard.routing[s].ids) << "step " << s + 1;
    EXPECT_NE(pools.routing[s].ids, standard.routing[s].ids) << "step " << s + 1;
  }
}

// What the tests above rely on: runs that differ in their seed differ in everything that is compared.
TEST(TrainAgain, AnotherSeedIsAnotherRun) {
  const test::TemporaryDirectory directory;
  Recipe r = test::tiny_recipe(test::make_text_sources(directory.path()));
  const RunOptions options{.ranks = 2, .steps = 2, .record_routing = true};
  const TrainingRun a = train_on_threads(r, options);
  ++r.run.seed;
  const TrainingRun b = train_on_threads(r, options);
  EXPECT_GT(test::relative(a.steps[1].loss(), b.steps[1].loss()), 1e-6);
  EXPECT_GT(test::tensor_deviation(a.gradients, b.gradients).largest, 1e-3);
  EXPECT_FALSE(test::series_agreement(a, b).ok);
  EXPECT_NE(a.draws, b.draws);
}

}  // namespace
}  // namespace emox
