// One rank fails somewhere in a training step with sharded experts: at every collective of the step in turn, also
// between the halves of an exchange. All ranks must end, and all must know why.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "runtime/core/error.h"
#include "tests/support/interrupted.h"
#include "tests/support/ranks.h"

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
    errors.assign(static_cast<std::size_t>(c.ranks), "");
    ThreadWorld world(c.ranks, {.ranks_per_node = 2});
    const auto body = [&](Communicator& comm) {
      bool armed = false;
      const auto wrapped = test::make_interrupted(comm, [&](std::string_view name) {
        if (armed && comm.rank() == c.victim) before(name);
      });
      try {
        test::StepRank rank(*wrapped, recipe);
        armed = true;
        rank.step(1);
        armed = false;
      } catch (const std::exception& e) {
        errors[static_cast<std::size_t>(comm.rank())] = e.what();
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
  ASSERT_GE(exchanges, 2 * 8) << "two layers, each: counts, picks, gates and four journeys of rows, gate gradients";
  ASSERT_GT(static_cast<std::int64_t>(names.size()), 2 * exchanges);
  for (std::size_t at = static_cast<std::size_t>(GetParam().victim) % kStride; at < names.size(); at += kStride) {
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

std::string name_of(const testing::TestParamInfo<Case>& c) { return c.param.name; }
INSTANTIATE_TEST_SUITE_P(All, TrainFailure,
                         testing::Values(Case{"two", 2, DispatchKind::Flat, 1}, Case{"four", 4, DispatchKind::Flat, 2},
                                         Case{"four_two_level", 4, DispatchKind::TwoLevel, 0}),
                         name_of);

}  // namespace
}  // namespace emox
