// What a device would have to wait for, or could overlap, in a training step.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "runtime/core/idx.h"
#include "tests/support/interrupted.h"
#include "tests/support/ranks.h"
#include "tests/support/support.h"

namespace emox {
namespace {

using test::StepRank;

std::int64_t reads(Telemetry& telemetry) {
  const auto found = telemetry.totals().find("copy_to_host");
  return found == telemetry.totals().end() ? 0 : found->second.calls;
}

// Integers and sums of a step, once at its end; with experts on other ranks also each plan's counts, once.
TEST(StepSeams, TheHostReadsOnceAStepAndOncePerPlanWithOthers) {
  constexpr double kPlenty = 1e12;
  for (const int ranks : {1, 2})
    for (const DispatchKind dispatch : {DispatchKind::Flat, DispatchKind::TwoLevel})
      for (const BalanceScope scope : {BalanceScope::Step, BalanceScope::MicroBatch, BalanceScope::Local})
        for (const double memory : {kPlenty, 1.0})
          for (const BalanceMode mode : {BalanceMode::Aux, BalanceMode::Bias}) {
            Recipe recipe = test::step_recipe(ranks, dispatch);
            recipe.train.micro_batch_sequences = 1;
            recipe.model.balance_scope = scope;
            recipe.model.balance = mode;
            test::run_ranks(ranks, [&](Communicator& comm) {
              StepRank rank(comm, recipe, memory);
              rank.step(1);
              rank.telemetry().clear();
              rank.step(2);
              // Of two micro-batches; a forward pass that runs again asks nobody.
              EXPECT_EQ(reads(rank.telemetry()), 2 + (ranks > 1 ? recipe.model.layers * 2 : 0))
                  << ranks << " ranks, scope " << static_cast<int>(scope) << ", mode " << static_cast<int>(mode);
            });
          }
}

struct Trained {
  std::vector<std::vector<float>> weights;  ///< of all ranks
  std::vector<double> norms;
  std::int64_t sums = 0;  ///< reduce_scatter calls of a rank and step
};

Trained train(ShardedBuffer::Reduce reduce) {
  constexpr int kRanks = 4;
  Recipe recipe = test::step_recipe(kRanks, DispatchKind::Flat);
  recipe.parallel.expert_parallel = 2;
  recipe.train.micro_batch_sequences = 1;
  Trained result;
  result.weights.resize(kRanks);
  ThreadWorld world(kRanks, {.ranks_per_node = 2});
  test::run_ranks(world, [&](Communicator& comm) {
    const auto me = idx(comm.rank());
    std::int64_t calls = 0;
    test::interrupt(comm, [&](std::string_view name) { calls += name == "reduce_scatter" ? 1 : 0; });
    StepRank rank(comm, recipe, std::nullopt, reduce);
    std::vector<double> norms;
    for (std::int64_t step = 1; step <= 3; ++step) norms.push_back(rank.step(step).grad_norm);
    const ParameterStore& store = rank.model().parameters();
    for (const ParameterGroup g : kParameterGroups)
      for (const float w : test::values_of<float>(store.weight(store.flat(g)))) result.weights[me].push_back(w);
    if (me == 0) result.norms = norms, result.sums = calls / 3;
  });
  return result;
}

// A sum that is started when a layer's gradients are final adds the same numbers in the same order.
TEST(StepSeams, SumsThatStartEarlyGiveTheSameBits) {
  const Trained at_end = train(ShardedBuffer::Reduce::AtEnd), when_ready = train(ShardedBuffer::Reduce::WhenReady);
  EXPECT_EQ(at_end.sums, 2);          // dense, experts
  EXPECT_EQ(when_ready.sums, 2 + 4);  // embedding, head; dense and experts of two layers; nothing is left
  EXPECT_EQ(when_ready.norms, at_end.norms);
  EXPECT_EQ(when_ready.weights, at_end.weights);
}

TEST(StepSeams, AStretchIsSummedOnce) {
  test::run_ranks(2, [](Communicator& comm) {
    ShardedBuffer shards(comm, even_ranges(0, 64, 2));
    shards.reduce(ShardedBuffer::Reduce::WhenReady);
    const Tensor flat({}, DType::F32, {64});
    for (std::int64_t i = 0; i < 64; ++i) flat.view().data<float>()[i] = static_cast<float>(i);
    shards.start_reduce(flat, 20, 40);
    EXPECT_THROW(shards.start_reduce(flat, 39, 41), ShapeError);
    shards.finish_reduce(flat);
    const std::int64_t begin = comm.rank() * 32;
    for (std::int64_t i = begin; i < begin + 32; ++i)
      EXPECT_EQ(flat.view().data<float>()[i], 2 * static_cast<float>(i)) << i;
  });
}

}  // namespace
}  // namespace emox
