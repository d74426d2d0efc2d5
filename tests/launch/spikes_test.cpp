// Which steps are spikes: by hand for small windows, over a resume, and in a run whose data holds one.
#include "launch/run/spikes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "tests/launch/tiny_program.h"

namespace emox {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// 1, 2, ..., 8 have the mean 4.5 and the standard deviation (of a sample) sqrt(6).
TEST(SpikeGuard, ComparesWithTheMeanAndTheDeviationOfTheWindow) {
  const double edge = 4.5 + 3 * std::sqrt(6.0);
  for (const double x : {edge * 0.999999, edge * 1.000001}) {
    for (const bool in_the_norm : {false, true}) {
      SpikeGuard guard(3, 8);
      for (int i = 1; i <= 8; ++i) ASSERT_EQ(guard.judge(i, i), "");
      const std::string why = in_the_norm ? guard.judge(4, x) : guard.judge(x, 4);
      EXPECT_EQ(why.empty(), x < edge) << why;
      EXPECT_EQ(guard.skipped(), x < edge ? 0 : 1);
      if (x > edge) {
        EXPECT_NE(why.find(in_the_norm ? "gradient norm" : "loss"), std::string::npos) << why;
        EXPECT_NE(why.find("3 standard deviations above the mean of the last 8 steps, 4.5 +- 2.45"), std::string::npos)
            << why;
      }
    }
  }
}

TEST(SpikeGuard, WaitsForHalfAWindowAndForgetsWhatIsOlder) {
  SpikeGuard guard(2, 8);
  const auto judge = [&](double x) { return guard.judge(x, x); };
  for (const double x : {1.0, 1.1, 0.9}) EXPECT_EQ(judge(x), "");
  EXPECT_EQ(judge(100), "");                                            // three steps seen, four are needed
  EXPECT_EQ(judge(1), "");                                              // far below is none
  for (int i = 0; i < 8; ++i) EXPECT_EQ(judge(1 + 0.01 * i), "") << i;  // after them the 100 is forgotten
  EXPECT_NE(judge(2), "");
  // A level that stays is soon none any more: spikes join the window.
  for (int i = 0; i < 8; ++i) (void)judge(2 + 0.01 * i);
  EXPECT_LT(guard.skipped(), 5);
  EXPECT_EQ(judge(2.05), "");
}

TEST(SpikeGuard, EqualValuesHaveNoDeviation) {
  SpikeGuard guard(6, 8);
  for (int i = 0; i < 30; ++i) EXPECT_EQ(guard.judge(0.1, 0.7), "");
  EXPECT_NE(guard.judge(0.1000001, 0.7), "");
}

TEST(SpikeGuard, ARunThatIsNoNumberAnyMoreFails) {
  SpikeGuard guard(6, 128);
  for (int repeat = 0; repeat < 2; ++repeat) {
    for (int i = 0; i < SpikeGuard::kMostNotFinite; ++i) EXPECT_NE(guard.judge(i % 2 == 0 ? kNaN : 1, kNaN), "");
    if (repeat == 0) {
      EXPECT_EQ(guard.judge(1, 1), "");  // in a row
    }
  }
  EXPECT_EQ(guard.judge(kNaN, 1), "");
  EXPECT_EQ(guard.skipped(), 2 * SpikeGuard::kMostNotFinite);
}

TEST(SpikeGuard, GoesOnFromItsState) {
  SpikeGuard whole(1.5, 16);
  std::vector<std::string> expected;
  const auto value = [](int i) { return 3 + std::sin(i * 1.7) / 3 + (i % 13 == 12 ? 5 : 0); };
  const auto judge = [&](SpikeGuard& guard, int i) { return guard.judge(i == 30 ? kNaN : value(i), value(2 * i)); };
  for (int i = 0; i < 60; ++i) expected.push_back(judge(whole, i));
  for (const int cut : {1, 12, 29, 31, 50}) {
    SpikeGuard first(1.5, 16), second(1.5, 16);
    for (int i = 0; i < cut; ++i) (void)judge(first, i);
    second.restore(nlohmann::json::parse(first.state().dump()), "manifest.json");
    for (int i = cut; i < 60; ++i) EXPECT_EQ(judge(second, i), expected[idx(i)]) << cut << " " << i;
    EXPECT_EQ(second.state(), whole.state());
  }
  EXPECT_GT(whole.skipped(), 1);
  EXPECT_THROW(whole.restore({{"losses", "x"}}, "manifest.json"), UsageError);
}

/// A run that finds two or more spikes by a threshold below what noise does.
class SkippedSteps : public test::TinyProgram {
 protected:
  SkippedSteps() {
    recipe_.train.steps = 24;
    recipe_.train.skip_spikes = 0.5, recipe_.train.skip_window = 8;
    recipe_.checkpoint.every_steps = 0;
    write();
  }
};

TEST_F(SkippedSteps, UpdateNothingAndAreCountedOverAResume) {
  expect(emox("train " + path_), 0, {"is skipped, nothing is updated (train.skip_spikes = 0.5)"});
  const auto whole = test::read_metrics(recipe_.run.dir);
  ASSERT_EQ(whole.size(), 24U);
  std::int64_t total = 0;
  for (const auto& line : whole) {
    total += line.at("skipped").get<int>();
    EXPECT_EQ(line.at("skipped_steps"), total);
  }
  ASSERT_GE(total, 2);
  ASSERT_LT(total, 20);
  // Saved right after a skipped step, and in between.
  const auto skipped =
      std::find_if(whole.begin(), whole.end(), [](const auto& line) { return line.at("skipped") == 1; });
  const std::string dir = (directory_.path() / "parts").string();
  for (const std::int64_t stop : {skipped->at("step").get<std::int64_t>(), skipped->at("step").get<std::int64_t>() + 2})
    expect(emox("train " + path_ + " --run.dir=" + dir + " --run.stop_after_step=" + std::to_string(stop)), 0, {});
  expect(emox("train " + path_ + " --run.dir=" + dir), 0, {});
  test::expect_same_history(dir, recipe_.run.dir, 24);
}

// A step that is skipped leaves weights, moments and the selection bias as they are.
TEST_F(SkippedSteps, LeaveTheStateAsItIs) {
  recipe_.model.balance = BalanceMode::Bias;
  write();
  ASSERT_EQ(emox("train " + path_).exit_code, 0);
  const auto lines = test::read_metrics(recipe_.run.dir);
  const auto skipped =
      std::find_if(lines.begin(), lines.end(), [](const auto& line) { return line.at("skipped") == 1; });
  ASSERT_NE(skipped, lines.end());
  const std::int64_t step = skipped->at("step");
  for (const std::int64_t stop : {step - 1, step})
    expect(emox("train " + path_ + " --checkpoint.keep_last=9 --run.dir=" + recipe_.run.dir +
                "2 --run.stop_after_step=" + std::to_string(stop)),
           0, {});
  const auto checkpoint = [&](std::int64_t s) { return recipe_.run.dir + fmt::format("2/checkpoints/step-{:08}", s); };
  const auto diff = emox("checkpoint diff " + checkpoint(step - 1) + " " + checkpoint(step));
  EXPECT_EQ(diff.exit_code, 0) << diff.output;
}

}  // namespace
}  // namespace emox
