// How a step is cut into micro-batches and ranks: no difference under the step scope, the reference's formula under the
// micro_batch and local scopes (spec 2.2, design 4.7).
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "tests/support/agreement.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox {
namespace {

using test::NamedValues;
using test::train_on_threads;
using test::TrainingRun;

class TrainCut : public testing::Test {
 protected:
  TrainCut() : recipe_(test::tiny_recipe(test::make_text_sources(directory_.path()))) {
    trained_ = train_on_threads(recipe_, {.steps = 20}).weights;
  }

  TrainingRun one_step(int ranks, std::int64_t micro, MicroBatchMemory memory = MicroBatchMemory::Hold) const {
    Recipe r = recipe_;
    r.train.micro_batch_sequences = micro;
    r.train.micro_batch_memory = memory;
    return train_on_threads(r, {.ranks = ranks, .first_step = 21, .start = &trained_});
  }

  test::TemporaryDirectory directory_;
  Recipe recipe_;
  NamedValues trained_;
};

void expect_close(const TrainingRun& got, const TrainingRun& want) {
  EXPECT_LE(test::relative(got.steps[0].loss(), want.steps[0].loss()), 1e-6);
  EXPECT_LE(test::relative(got.steps[0].lb, want.steps[0].lb), 1e-6);
  const test::Deviation d = test::tensor_deviation(got.gradients, want.gradients);
  EXPECT_LE(d.largest, 1e-5) << d.name;
}

TEST_F(TrainCut, TheStepScopeDoesNotSeeTheCut) {
  recipe_.model.balance_weight = 1.0;  // ten times the usual: the balance gradient counts
  const TrainingRun whole = one_step(1, 12);
  double worst = 0;
  for (const int ranks : {1, 2, 4})
    for (const std::int64_t micro : {1, 2, 3, 8}) {
      SCOPED_TRACE(testing::Message() << ranks << " ranks, micro-batches of " << micro);
      const TrainingRun hold = one_step(ranks, micro, MicroBatchMemory::Hold);
      const TrainingRun again = one_step(ranks, micro, MicroBatchMemory::Recompute);
      expect_close(hold, whole);
      EXPECT_EQ(hold.steps[0].loss(), again.steps[0].loss());
      EXPECT_EQ(hold.steps[0].grad_norm, again.steps[0].grad_norm);
      EXPECT_EQ(hold.gradients, again.gradients);
      EXPECT_EQ(hold.steps[0].experts_per_document, whole.steps[0].experts_per_document);
      worst = std::max(worst, test::tensor_deviation(hold.gradients, whole.gradients).largest);
    }
  std::printf("  largest gradient deviation %.1e\n", worst);
}

// Shares of 3, 4 and 3 sequences in micro-batches of 2: one rank has fewer, smaller ones.
TEST_F(TrainCut, UnequalSharesAreAllowed) {
  recipe_.train.batch_sequences = 10;
  const TrainingRun whole = one_step(1, 10);
  for (const MicroBatchMemory memory : {MicroBatchMemory::Hold, MicroBatchMemory::Recompute}) {
    expect_close(one_step(3, 2, memory), whole);
    expect_close(one_step(4, 1, memory), whole);  // 2, 3, 2 and 3: two ranks end with an empty micro-batch
  }
}

TEST_F(TrainCut, WithoutABalanceLossNothingSeesTheCut) {
  for (const BalanceMode mode : {BalanceMode::Bias, BalanceMode::None}) {
    recipe_.model.balance = mode;
    const TrainingRun whole = one_step(1, 12);
    EXPECT_EQ(whole.steps[0].lb, 0.0);
    const TrainingRun cut = one_step(2, 2);
    EXPECT_LE(test::relative(cut.steps[0].loss(), whole.steps[0].loss()), 1e-6);
    EXPECT_LE(test::tensor_deviation(cut.gradients, whole.gradients).largest, 1e-5);
    EXPECT_EQ(cut.bias, whole.bias);  // counts of the whole step decide
    EXPECT_EQ(whole.bias.empty(), mode == BalanceMode::None);
  }
}

// The reference's loss from the routing alone, in double. `together`: ranks whose counts are added up.
double reference_balance(const Recipe& r, const test::Routing& routing, int ranks, std::int64_t micro, bool together) {
  const ModelConfig& c = r.model;
  const std::int64_t n = c.routed_experts(), k = c.routed_top_k(), length = c.sequence_length,
                     batch = r.train.batch_sequences;
  const std::int64_t share = batch / ranks, all = batch * length;
  double loss = 0;
  for (std::int64_t l = 0; l < c.layers; ++l)
    for (std::int64_t m = 0; m * micro < share; ++m) {
      std::vector<std::vector<double>> counts(ranks, std::vector<double>(n)), mean = counts;
      for (int j = 0; j < ranks; ++j) {
        const std::int64_t begin = (j * share + m * micro) * length,
                           end = (j * share + std::min(share, (m + 1) * micro)) * length;
        for (std::int64_t t = begin; t < end; ++t) {
          for (std::int64_t s = 0; s < k; ++s) counts[j][routing.ids[(l * all + t) * k + s]] += 1;
          for (std::int64_t i = 0; i < n; ++i)
            mean[j][i] += double{routing.p[(l * all + t) * n + i]} / static_cast<double>(end - begin);
        }
      }
      const auto scored = static_cast<double>(share * (length - 1));  // D_j: the labels of a rank's whole share
      for (int j = 0; j < ranks; ++j)
        for (std::int64_t i = 0; i < n; ++i) {
          double picks = counts[j][i];
          if (together) picks = 0;
          for (int o = 0; together && o < ranks; ++o) picks += counts[o][i];
          // mean over ranks of (n / k) sum C Pbar / D
          loss += static_cast<double>(n) / static_cast<double>(k) * picks * mean[j][i] /
                  (together ? scored * ranks : scored) / ranks;
        }
    }
  return loss * c.balance_weight / static_cast<double>(c.layers);
}

TEST_F(TrainCut, MicroBatchAndLocalScopesAreTheReferencesFormula) {
  // Routing does not depend on the scope or on the cut.
  const test::Routing routing =
      train_on_threads(recipe_, {.first_step = 21, .record_routing = true, .start = &trained_}).routing[0];
  for (const BalanceScope scope : {BalanceScope::MicroBatch, BalanceScope::Local}) {
    recipe_.model.balance_scope = scope;
    for (const int ranks : {1, 2, 4})
      for (const std::int64_t micro : {1, 3, 12}) {
        const double want = reference_balance(recipe_, routing, ranks, std::min<std::int64_t>(micro, 12 / ranks),
                                              scope == BalanceScope::MicroBatch);
        EXPECT_NEAR(one_step(ranks, micro).steps[0].lb, want, 1e-6 * want)
            << ranks << " ranks, micro-batches of " << micro;
      }
  }
}

// The balance loss of a rank sees its own counts; the load in the metrics is that of the experts.
TEST_F(TrainCut, TheLoadIsThatOfAllRanksUnderEveryScope) {
  const double want = one_step(1, 12).steps[0].load_max_over_mean;
  EXPECT_GT(want, 1.0);
  for (const BalanceScope scope : {BalanceScope::MicroBatch, BalanceScope::Local}) {
    recipe_.model.balance_scope = scope;
    for (const int ranks : {1, 3}) EXPECT_EQ(one_step(ranks, 2).steps[0].load_max_over_mean, want);
  }
}

// Two sequences on three ranks: the first has none, and does not count as a rank whose loss is 0.
TEST_F(TrainCut, ARankWithoutSequencesHasNoBalanceLoss) {
  recipe_.train.batch_sequences = 2;
  for (const BalanceScope scope : {BalanceScope::Step, BalanceScope::MicroBatch, BalanceScope::Local}) {
    recipe_.model.balance_scope = scope;
    const TrainingRun two = one_step(2, 1), three = one_step(3, 1);
    EXPECT_EQ(three.steps[0].lb, two.steps[0].lb);
    EXPECT_EQ(three.steps[0].ce, two.steps[0].ce);
    EXPECT_LE(test::tensor_deviation(three.gradients, two.gradients).largest, 1e-5);
    EXPECT_EQ(three.steps[0].experts_per_document, two.steps[0].experts_per_document);
  }
}

TEST_F(TrainCut, TheMicroBatchScopeSeesRanksTimesMicroBatchOnly) {
  recipe_.model.balance_scope = BalanceScope::MicroBatch;
  recipe_.model.balance_weight = 1.0;
  // One micro-batch a rank: the same sequences are together, whoever holds them.
  const TrainingRun whole = one_step(1, 12);
  expect_close(one_step(2, 6), whole);
  expect_close(one_step(4, 3), whole);
  // Other sequences together: another loss.
  const TrainingRun halves = one_step(1, 6);
  EXPECT_GT(test::relative(halves.steps[0].lb, whole.steps[0].lb), 1e-4);
  EXPECT_GT(test::tensor_deviation(halves.gradients, whole.gradients).largest, 1e-4);
}

}  // namespace
}  // namespace emox
