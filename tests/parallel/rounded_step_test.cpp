// A whole step whose activations are rounded to bf16 after every op: the oracle for devices that store them so.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/interrupted.h"
#include "tests/support/ranks.h"

namespace emox {
namespace {

StepMetrics step_of(int ranks, bool rounded) {
  const Recipe recipe = test::step_recipe(ranks, DispatchKind::Flat);
  StepMetrics metrics;
  test::run_ranks(ranks, [&](Communicator& comm) {
    test::StepRank rank(comm, recipe);
    rank.context().round_activations = rounded;
    const StepMetrics m = rank.step(1);
    if (comm.rank() == 0) metrics = m;
  });
  return metrics;
}

TEST(RoundedStep, IsNearTheStep) {
  for (const int ranks : {1, 2}) {
    const StepMetrics exact = step_of(ranks, false), rounded = step_of(ranks, true);
    // On the way to the last norm's output: the embedding; in each of two layers norm, qkv, attention, sum,
    // norm, rows, hidden, activation, row, combined sum; the last norm. Each rounds by half a spacing, relative to its
    // own size.
    constexpr double kRoundings = 1 + 2 * 10 + 1;
    const ModelConfig config = test::step_recipe(ranks, DispatchKind::Flat).model;
    // |x|_2 after a norm with scale 1 is sqrt(d), and so is a row of the head at most 0.06 sqrt(d). A loss moves by no
    // more than twice what its logits do.
    const double largest_logit = 0.06 * static_cast<double>(config.d_model);
    const double bound = 2 * largest_logit * kRoundings * kBf16Epsilon / 2;
    EXPECT_NEAR(rounded.ce, exact.ce, bound);
    EXPECT_NE(rounded.ce, exact.ce);
    EXPECT_NE(rounded.grad_norm, exact.grad_norm);
    EXPECT_NEAR(rounded.grad_norm, exact.grad_norm, kRoundings * kBf16Epsilon * exact.grad_norm);
    const StepMetrics again = step_of(ranks, true);
    EXPECT_EQ(again.loss(), rounded.loss());
  }
}

}  // namespace
}  // namespace emox
