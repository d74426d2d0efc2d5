// What `emox plan` says against emox's own count of what a run allocates.
#include <gtest/gtest.h>

#include <cstdio>

#include "launch/plan/memory.h"
#include "runtime/core/error.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox {
namespace {

struct Mesh {
  int expert_parallel, data_parallel;
  DispatchKind dispatch = DispatchKind::Flat;
};

Recipe recipe_on(const std::vector<std::string>& sources, const Mesh& m) {
  Recipe r = test::tiny_recipe(sources);
  r.model.d_model = 64, r.model.layers = 3, r.model.expert_ff = 64, r.model.sequence_length = 128;
  r.model.num_experts = 26, r.model.top_k = 4, r.model.pool_min = 8, r.model.pool_max = 25;
  r.train.batch_sequences = 32, r.train.micro_batch_sequences = 32;
  r.parallel.expert_parallel = m.expert_parallel, r.parallel.dispatch = m.dispatch;
  return r;
}

TEST(MemoryPlan, IsWhatARunAllocates) {
  const test::TemporaryDirectory directory;
  const auto sources = test::make_text_sources(directory.path());
  for (const Mesh& m :
       {Mesh{1, 1}, Mesh{2, 1}, Mesh{1, 2}, Mesh{4, 1}, Mesh{2, 2}, Mesh{4, 1, DispatchKind::TwoLevel}}) {
    SCOPED_TRACE(testing::Message() << m.expert_parallel << "x" << m.data_parallel);
    const Recipe r = recipe_on(sources, m);
    const int ranks = m.expert_parallel * m.data_parallel;
    std::int64_t planned = 0;
    for (int rank = 0; rank < ranks; ++rank) planned += plan_rank_memory(r, ranks, 2, rank, 1).total;
    const std::int64_t before = memory_stats().allocated;
    EXPECT_LT(before, planned / 50);  // the plan itself took nothing
    reset_memory_peak();
    (void)test::train_on_threads(r, {.ranks = ranks, .ranks_per_node = 2, .steps = 3});
    const std::int64_t peak = memory_stats().peak - before;
    std::printf("  %dx%d: planned %.2f MiB, peak %.2f MiB, %+.1f %%\n", m.expert_parallel, m.data_parallel,
                static_cast<double>(planned) / 1048576, static_cast<double>(peak) / 1048576,
                100 * (static_cast<double>(peak) / static_cast<double>(planned) - 1));
    EXPECT_NEAR(static_cast<double>(peak), static_cast<double>(planned), 0.05 * static_cast<double>(planned));
  }
}

// Sharding halves what it is meant to halve.
TEST(MemoryPlan, ExpertsAndMomentsAreShared) {
  const auto plan = [](int ep, int dp) { return plan_rank_memory(recipe_on({"a:1:b"}, {ep, dp}), ep * dp, 8, 0, 1); };
  const RankMemory one = plan(1, 1), sharded = plan(2, 1), replicated = plan(1, 2);
  const auto ratio = [](std::int64_t a, std::int64_t b) { return static_cast<double>(a) / static_cast<double>(b); };
  EXPECT_NEAR(ratio(sharded.expert_weights, one.expert_weights), 12.0 / 25, 1e-3);
  EXPECT_EQ(replicated.expert_weights, one.expert_weights);
  EXPECT_NEAR(ratio(replicated.optimizer, one.optimizer), 0.5, 0.02);
  EXPECT_NEAR(ratio(sharded.optimizer, one.optimizer), 0.5, 0.03);
}

// Groups begin on any node, and their communicators number nodes for themselves.
TEST(MemoryPlan, RanksOfEveryNodeAreAlike) {
  for (const DispatchKind dispatch : {DispatchKind::Flat, DispatchKind::TwoLevel}) {
    const Recipe r = recipe_on({"a:1:b"}, {4, 6, dispatch});
    for (int rank = 4; rank < 24; ++rank) {
      const RankMemory first = plan_rank_memory(r, 24, 2, rank % 4, 1), here = plan_rank_memory(r, 24, 2, rank, 1);
      EXPECT_EQ(here.weights_and_gradients, first.weights_and_gradients) << "rank " << rank;
      EXPECT_EQ(here.activations, first.activations) << "rank " << rank;
    }
  }
}

TEST(MemoryPlan, RefusesWhatATrainingRunWould) {
  EXPECT_THROW(plan_rank_memory(recipe_on({"a:1:b"}, {4, 1}), 6, 8, 0, 1), UsageError);
}

}  // namespace
}  // namespace emox
