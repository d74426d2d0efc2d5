// One rank fails somewhere in a training step with sharded experts: at every collective of the step in turn, also
// between the halves of an exchange. All ranks must end, and all must know why.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/ops/moe.h"
#include "tests/support/interrupted.h"
#include "tests/support/ranks.h"
#include "tests/support/support.h"

namespace emox {
namespace {

// Sanitizers make a step twenty times slower: every fifth place then, another one in each case.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kStride = 5;
#else
constexpr std::size_t kStride = 1;
#endif

struct Case {
  const char* name;
  int ranks;
  DispatchKind dispatch;
  int victim;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

class TrainFailure : public testing::TestWithParam<Case> {
 protected:
  /// One step on all ranks; `before` is called on the victim before each collective of it. errors[rank]: what it threw.
  static void step(const test::BeforeCollective& before, std::vector<std::string>& errors) {
    const Case& c = GetParam();
    const Recipe recipe = test::step_recipe(c.ranks, c.dispatch);
    errors.assign(idx(c.ranks), "");
    ThreadWorld world(c.ranks, {.ranks_per_node = 2});
    const auto body = [&](Communicator& comm) {
      bool armed = false;
      test::interrupt(comm, [&](std::string_view name) {
        if (armed && comm.rank() == c.victim) before(name);
      });
      try {
        test::StepRank rank(comm, recipe);
        armed = true;
        rank.step(1);
        armed = false;
      } catch (const std::exception& e) {
        errors[idx(comm.rank())] = e.what();
        throw;
      }
    };
    test::run_ranks(world, body, 30);
  }
};

TEST_P(TrainFailure, EveryRankGetsTheCause) {
  std::vector<std::string> names, errors;
  step([&](std::string_view name) { names.emplace_back(name); }, errors);
  const auto exchanges = std::count(names.begin(), names.end(), "all_to_all_v_finish");
  ASSERT_GE(exchanges, 2 * 5) << "two layers, each: counts, four journeys of rows, one with picks and gates";
  ASSERT_GT(static_cast<std::int64_t>(names.size()), 2 * exchanges);
  for (std::size_t at = idx(GetParam().victim) % kStride; at < names.size(); at += kStride) {
    const std::string cause = fmt::format("the disk is full at place {}, {}", at, names[at]);
    std::size_t place = 0;
    try {
      step(
          [&](std::string_view) {
            if (place++ == at) fail<IoError>("{}", cause);
          },
          errors);
      FAIL() << "nobody noticed: " << cause;
    } catch (const IoError& e) {
      EXPECT_EQ(e.message(), cause);
    }
    for (std::size_t r = 0; r < errors.size(); ++r)
      EXPECT_NE(errors[r].find(cause), std::string::npos) << "rank " << r << ", " << cause << ": " << errors[r];
  }
  std::printf("  %zu places\n", names.size());
}

// What a rank sees of its node's memory is its own: ranks that hold activations and ranks that compute them twice would
// wait for each other's experts.
TEST(TrainMemory, RanksWithDifferentFreeMemoryDecideTogether) {
  Recipe recipe = test::step_recipe(2, DispatchKind::Flat);
  recipe.train.micro_batch_sequences = 1;
  constexpr double kPlenty = 1e12;
  std::optional<StepMetrics> held;
  for (const std::vector<double>& memory :
       {std::vector{kPlenty, kPlenty}, {kPlenty, 1.0}, {1.0, kPlenty}, {1.0, 1.0}}) {
    std::vector<char> recomputes(2);
    StepMetrics last;
    test::run_ranks(2, [&](Communicator& comm) {
      const auto at = idx(comm.rank());
      test::StepRank rank(comm, recipe, memory[at]);
      recomputes[at] = rank.recomputes_forward() ? 1 : 0;
      rank.step(1);
      const StepMetrics m = rank.step(2);
      if (comm.rank() == 0) last = m;
    });
    if (!held) held = last;
    const bool twice = memory != std::vector{kPlenty, kPlenty};
    EXPECT_EQ(recomputes, std::vector<char>(2, twice ? 1 : 0));
    EXPECT_EQ(last.loss(), held->loss());
    EXPECT_EQ(last.grad_norm, held->grad_norm);
  }
}

// A NaN in the weights of all ranks, or in what one rank alone computes: the router's picks stay picks, and every rank
// reports the step, whatever it is that went wrong and on whichever rank.
TEST_P(TrainFailure, ANaNIsTheStepsOnEveryRank) {
  const Case& c = GetParam();
  const Recipe recipe = test::step_recipe(c.ranks, c.dispatch);
  for (const char* poisoned : {"model.layers.0.mlp.gate.weight", "model.layers.1.mlp.gate.weight",
                               "model.embed_tokens.weight", "lm_head.weight"})
    for (const bool everywhere : {true, false}) {
      SCOPED_TRACE(testing::Message() << poisoned << (everywhere ? " on all ranks" : " on one rank"));
      std::vector<std::string> errors(idx(c.ranks));
      ThreadWorld world(c.ranks, {.ranks_per_node = 2});
      const auto body = [&](Communicator& comm) {
        test::StepRank rank(comm, recipe);
        const ParameterStore& store = rank.model().parameters();
        for (const NamedParameter& p : store.named())
          if (p.name == poisoned && (everywhere || comm.rank() == c.victim)) {
            const TensorView w = store.weight(p.slot);
            std::fill_n(w.data<float>(), w.numel() / 2, std::nanf(""));
          }
        try {
          rank.step(1);
        } catch (const Error& e) {
          errors[idx(comm.rank())] = e.message();
        }
      };
      test::run_ranks(world, body, 30);
      for (const std::string& e : errors) {
        EXPECT_TRUE(e.starts_with("step 1: loss ")) << e;
        EXPECT_NE(e.find("nan, gradient norm "), std::string::npos) << e;
      }
    }
}

// An op met an index that some op before it made, and that points nowhere: what a device's kernel can only report, the
// step says on every rank. The step after it begins without that.
TEST_P(TrainFailure, AWrongIndexIsTheStepsOnEveryRank) {
  const Case& c = GetParam();
  const Recipe recipe = test::step_recipe(c.ranks, c.dispatch);
  std::vector<std::string> errors(idx(c.ranks));
  ThreadWorld world(c.ranks, {.ranks_per_node = 2});
  const auto body = [&](Communicator& comm) {
    test::StepRank rank(comm, recipe);
    const Tensor x({}, DType::F32, {3, 2}), out({}, DType::F32, {4, 2});
    const Tensor index = test::tensor_of(std::vector<std::int32_t>{2, 0, 3, -1}, {4});
    StepVotes votes;
    votes.late = [&] {  // while the step runs
      if (comm.rank() == c.victim) ops::gather_rows(rank.context(), out, x, index);
      return LateVotes{};
    };
    const auto before =
        test::values_of<float>(rank.model().parameters().weight(rank.model().parameters().flat(ParameterGroup::Dense)));
    try {
      rank.step(1, votes);
    } catch (const Error& e) {
      errors[idx(comm.rank())] = e.message();
    }
    EXPECT_EQ(
        test::values_of<float>(rank.model().parameters().weight(rank.model().parameters().flat(ParameterGroup::Dense))),
        before);
    rank.step(1);
  };
  test::run_ranks(world, body, 30);
  for (const std::string& e : errors)
    EXPECT_TRUE(
        e.starts_with(fmt::format("[gather_rows] element 2 of operand 3 points outside on rank {}: ", c.victim)))
        << e;
}

std::string name_of(const testing::TestParamInfo<Case>& c) { return c.param.name; }
INSTANTIATE_TEST_SUITE_P(All, TrainFailure,
                         testing::Values(Case{"two", 2, DispatchKind::Flat, 1}, Case{"four", 4, DispatchKind::Flat, 2},
                                         Case{"four_two_level", 4, DispatchKind::TwoLevel, 0}),
                         name_of);

}  // namespace
}  // namespace emox
