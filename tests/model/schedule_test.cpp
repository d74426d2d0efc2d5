// Learning rates in closed form (spec 4); steps count from 1.
#include <gtest/gtest.h>

#include <cmath>

#include "model/optim/schedule.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

TEST(Schedule, WarmUpRisesInAStraightLine) {
  for (const ScheduleKind kind : {ScheduleKind::Cosine, ScheduleKind::Linear, ScheduleKind::Constant}) {
    const Schedule s{.kind = kind, .peak = 0.4, .warmup_steps = 20, .last_step = 100};
    EXPECT_DOUBLE_EQ(s.learning_rate(1), 0.02);
    EXPECT_DOUBLE_EQ(s.learning_rate(10), 0.2);
    EXPECT_DOUBLE_EQ(s.learning_rate(19), 0.38);
    EXPECT_DOUBLE_EQ(s.learning_rate(20), 0.4);
    EXPECT_LE(s.learning_rate(21), 0.4);
  }
}

TEST(Schedule, CosineFallsToTheRatio) {
  const Schedule s{.kind = ScheduleKind::Cosine, .peak = 0.4, .warmup_steps = 20, .last_step = 100, .min_ratio = 0.1};
  EXPECT_NEAR(s.learning_rate(40), 0.04 + 0.36 * (1 + std::sqrt(0.5)) / 2, 1e-15);  // a quarter of the way
  EXPECT_NEAR(s.learning_rate(60), 0.22, 1e-15);
  EXPECT_NEAR(s.learning_rate(80), 0.04 + 0.36 * (1 - std::sqrt(0.5)) / 2, 1e-15);
  EXPECT_DOUBLE_EQ(s.learning_rate(100), 0.04);
  EXPECT_DOUBLE_EQ(s.learning_rate(1000), 0.04);
  for (std::int64_t step = 21; step <= 100; ++step) EXPECT_LT(s.learning_rate(step), s.learning_rate(step - 1));
}

TEST(Schedule, LinearFallsToTheRatio) {
  const Schedule s{.kind = ScheduleKind::Linear, .peak = 0.4, .warmup_steps = 0, .last_step = 100, .min_ratio = 0.5};
  EXPECT_NEAR(s.learning_rate(1), 0.398, 1e-15);
  EXPECT_NEAR(s.learning_rate(50), 0.3, 1e-15);
  EXPECT_NEAR(s.learning_rate(100), 0.2, 1e-15);
}

TEST(Schedule, ConstantStays) {
  const Schedule s{.kind = ScheduleKind::Constant, .peak = 0.4, .last_step = 10};
  for (const std::int64_t step : {1, 5, 10, 11}) EXPECT_EQ(s.learning_rate(step), 0.4);
}

// An anneal goes on where another run ended, from the peak to zero, without a warm-up.
TEST(Schedule, AnnealFallsToZero) {
  const Schedule s{
      .kind = ScheduleKind::Linear, .peak = 0.4, .last_step = 150, .min_ratio = 0, .anneal_from_step = 100};
  EXPECT_DOUBLE_EQ(s.learning_rate(100), 0.4);
  EXPECT_NEAR(s.learning_rate(101), 0.392, 1e-15);
  EXPECT_NEAR(s.learning_rate(125), 0.2, 1e-15);
  EXPECT_EQ(s.learning_rate(150), 0.0);
  EXPECT_EQ(s.learning_rate(151), 0.0);
}

// No run that is to be annealed is there yet.
TEST(Schedule, ThereIsNoRateBeforeAnAnneal) {
  const Schedule s{
      .kind = ScheduleKind::Linear, .peak = 0.4, .last_step = 150, .min_ratio = 0, .anneal_from_step = 100};
  EXPECT_THROW((void)s.learning_rate(99), Error);
  Schedule backwards = s;
  backwards.last_step = 100;
  EXPECT_THROW((void)backwards.learning_rate(100), Error);
  EXPECT_THROW((void)Schedule{}.learning_rate(-1), Error);
}

// Warm-up, stable, decay: the peak until the last decay_steps, then a straight line.
TEST(Schedule, WsdStandsAndThenFalls) {
  Schedule s{.kind = ScheduleKind::Wsd, .peak = 0.4, .warmup_steps = 20, .last_step = 100, .min_ratio = 0.1};
  s.decay_steps = 30;
  EXPECT_DOUBLE_EQ(s.learning_rate(5), 0.1);
  for (const std::int64_t step : {20, 21, 50, 69, 70}) EXPECT_EQ(s.learning_rate(step), 0.4) << step;
  for (std::int64_t step = 71; step <= 100; ++step)
    EXPECT_NEAR(s.learning_rate(step), 0.04 + 0.36 * static_cast<double>(100 - step) / 30, 1e-15) << step;
  EXPECT_DOUBLE_EQ(s.learning_rate(100), 0.04);
  EXPECT_DOUBLE_EQ(s.learning_rate(101), 0.04);
  // A longer run is the same up to where the shorter one began to fall.
  Schedule longer = s;
  longer.last_step = 200;
  for (std::int64_t step = 1; step <= 70; ++step) EXPECT_EQ(longer.learning_rate(step), s.learning_rate(step));
  EXPECT_EQ(longer.learning_rate(100), 0.4);
  EXPECT_DOUBLE_EQ(longer.learning_rate(185), 0.04 + 0.36 / 2);
}

}  // namespace
}  // namespace emox
