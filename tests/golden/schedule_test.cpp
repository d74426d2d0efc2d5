// Learning rates; the whole case is in case.json.
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "model/optim/schedule.h"
#include "tests/support/golden.h"

namespace emox::test {
namespace {

constexpr double kRelative = 1e-12;  // what float64 code must reach, by the case's own words

Schedule schedule_of(const std::string& name, const nlohmann::json& s) {
  Schedule r;
  if (name == "warmup_cosine") {
    r.peak = s.at("peak"), r.warmup_steps = s.at("warmup"), r.last_step = s.at("last"), r.min_ratio = s.at("floor");
  } else if (name == "constant_warmup") {
    r.kind = ScheduleKind::Constant;
    r.peak = s.at("peak"), r.warmup_steps = s.at("warmup");
  } else if (name == "linear_anneal") {
    r.kind = ScheduleKind::Linear;
    r.peak = s.at("start"), r.anneal_from_step = s.at("first"), r.min_ratio = 0;
    r.last_step = r.anneal_from_step + s.at("length").get<std::int64_t>();
  } else {
    throw std::runtime_error("no schedule is known by this name");
  }
  return r;
}

void run_schedules(GoldenCase& c) {
  int schedules = 0;
  for (const auto& [name, recorded] : c.json().items()) {
    if (!recorded.is_object()) continue;
    SCOPED_TRACE(name);
    const Schedule schedule = schedule_of(name, recorded);
    ASSERT_FALSE(recorded.at("values").empty());
    for (const nlohmann::json& pair : recorded.at("values")) {
      const std::int64_t step = pair.at(0);
      const double want = pair.at(1);
      // The anneal is off by roundings of its start where it nears 0.
      const double scale = name == "linear_anneal" ? schedule.peak : want;
      SCOPED_TRACE(::testing::Message() << "step " << step);
      c.expect_number(name, want, schedule.learning_rate(step), kRelative * scale);
    }
    ++schedules;
  }
  EXPECT_GT(schedules, 0);
}

TEST(Golden, Schedule) { for_each_golden_case(EMOX_SOURCE_DIR, "schedule", run_schedules); }

}  // namespace
}  // namespace emox::test
