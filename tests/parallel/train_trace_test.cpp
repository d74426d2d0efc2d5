// The timeline of a run: what is written, and what a viewer finds in it.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "launch/run/trace.h"
#include "launch/run/trainer.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "tests/support/ranks.h"
#include "tests/support/support.h"
#include "tests/support/trace.h"
#include "tests/support/training.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using Clock = Telemetry::Clock;

class TrainTrace : public testing::Test {
 protected:
  fs::path file() const { return directory_.path() / "trace.json"; }
  test::TemporaryDirectory directory_;
};

Clock::time_point at(std::int64_t ns) { return Clock::time_point(std::chrono::nanoseconds(ns)); }

TEST_F(TrainTrace, EveryEventOfEveryRankIsInItsLane) {
  // Rank 0 has a few events, rank 1 none, rank 2 more than two pieces.
  const std::int64_t counts[] = {3, 0, 70001};
  test::run_ranks(3, [&](Communicator& comm) {
    Telemetry telemetry;
    telemetry.start_trace(at(0), 100000);
    for (std::int64_t i = 0; i < counts[comm.rank()]; ++i) {
      // 10 ns each, inside an outer one of 100 ns; names that only one rank knows, and one that JSON must quote.
      telemetry.add(i % 7 == 0 ? "layer.\"q\\" : "layer.r" + std::to_string(comm.rank()), at(100 * i + 5),
                    at(100 * i + 15), 0, 0);
      telemetry.add("phase.outer", at(100 * i), at(100 * i + 100), 0, 0);
    }
    const TraceSummary summary = write_trace(comm, telemetry, file());
    EXPECT_EQ(summary.events, 2 * 3 + 100000);
    EXPECT_EQ(summary.dropped, 2 * 70001 - 100000);
  });
  const auto lanes = test::read_trace(file());
  ASSERT_EQ(lanes.size(), 3U);
  EXPECT_EQ(lanes.at(0).size(), 6U);
  EXPECT_TRUE(lanes.at(1).empty());
  ASSERT_EQ(lanes.at(2).size(), 100000U);
  for (std::int64_t i = 0; i < 50000; ++i) {
    const test::TraceSpan& outer = lanes.at(2)[idx(2 * i)];
    const test::TraceSpan& inner = lanes.at(2)[idx(2 * i + 1)];
    ASSERT_EQ(outer.name, "phase.outer");
    ASSERT_EQ(outer.start_ns, 100 * i);
    ASSERT_EQ(outer.end_ns, 100 * i + 100);
    ASSERT_EQ(outer.depth, 0);
    ASSERT_EQ(inner.name, i % 7 == 0 ? "layer.\"q\\" : "layer.r2");
    ASSERT_EQ(inner.start_ns, 100 * i + 5);
    ASSERT_EQ(inner.end_ns, 100 * i + 15);
    ASSERT_EQ(inner.depth, 1);
  }
  EXPECT_FALSE(fs::exists(file().string() + ".tmp"));
}

TEST_F(TrainTrace, SpansThatStartOrEndTogetherKeepTheirOrder) {
  const auto self = make_self_communicator();
  Telemetry telemetry;
  telemetry.start_trace(at(0), 10);
  telemetry.add("inner", at(10), at(20), 0, 0);
  telemetry.add("middle", at(10), at(20), 0, 0);
  telemetry.add("outer", at(10), at(30), 0, 0);
  telemetry.add("next", at(30), at(1'234'567'891), 0, 0);
  write_trace(*self, telemetry, file());
  const auto lanes = test::read_trace(file());
  std::vector<std::string> names;
  for (const test::TraceSpan& s : lanes.at(0)) names.push_back(s.name);
  EXPECT_EQ(names, (std::vector<std::string>{"outer", "middle", "inner", "next"}));
  EXPECT_EQ(lanes.at(0)[3].end_ns, 1'234'567'891);
}

TEST_F(TrainTrace, AFileThatCannotBeWrittenFailsOnAllRanks) {
  test::run_ranks(2, [&](Communicator& comm) {
    Telemetry telemetry;
    EXPECT_THROW(write_trace(comm, telemetry, directory_.path() / "nowhere" / "trace.json"), IoError);
    fs::create_directories(directory_.path() / ("folder" + std::to_string(comm.rank())));
    comm.barrier();
    EXPECT_THROW(write_trace(comm, telemetry, directory_.path() / "folder0"), IoError);
    comm.barrier();
    EXPECT_FALSE(fs::exists(directory_.path() / "folder0.tmp"));
  });
}

TEST_F(TrainTrace, AFullDiskIsNamed) {
  fs::create_symlink("/dev/full", file().string() + ".tmp");
  const auto self = make_self_communicator();
  Telemetry nothing;
  try {
    write_trace(*self, nothing, file());
    ADD_FAILURE();
  } catch (const IoError& e) {
    EXPECT_NE(e.message().find("No space left on device; check the free space"), std::string::npos) << e.message();
  }
  EXPECT_TRUE(fs::is_empty(directory_.path()));
}

TEST_F(TrainTrace, DroppedEventsAreToldInTheLog) {
  testing::internal::CaptureStderr();
  test::run_ranks(2, [&](Communicator& comm) {
    Session session(comm.split(0, comm.rank()), 1);
    begin_trace(session, 4);
    for (int i = 0; i < 6; ++i) {
      const Span span(session.ctx(), "phase.forward");
      const Span op(session.ctx(), "matmul");  // not traced, and not missed
    }
    finish_trace(session, file());
  });
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_NE(log.find("timeline of 8 events in " + file().string()), std::string::npos) << log;
  EXPECT_NE(log.find("warning: the timeline's end is missing: 4 events of 12 found no room"), std::string::npos) << log;
  EXPECT_EQ(test::read_trace(file()).size(), 2U);
}

TEST_F(TrainTrace, ARunShowsItsPhasesOnEveryRank) {
  Recipe r = test::tiny_recipe(test::make_text_sources(directory_.path()));
  r.run.dir = (directory_.path() / "run").string();
  r.run.stop_after_step = 3;
  r.eval.final = false;
  testing::internal::CaptureStderr();
  test::run_ranks(2, [&](Communicator& comm) {
    Session session(comm.split(0, comm.rank()), 1);
    train(session, r, {"test"}, {.trace = file().string(), .record_pools = ""});
  });
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_EQ(log.find("found no room"), std::string::npos) << log;
  const auto lanes = test::read_trace(file());
  ASSERT_EQ(lanes.size(), 2U);
  for (const auto& [rank, spans] : lanes) {
    std::map<std::string, int> count;
    for (const test::TraceSpan& s : spans) {
      ++count[s.name];
      EXPECT_NE(s.name.find('.'), std::string::npos) << s.name;  // pieces of the program, not ops
    }
    for (const char* each_step : {"phase.data", "comm.counts", "comm.gradients", "comm.losses"})
      EXPECT_EQ(count[each_step], 3) << each_step;
    for (const char* name : {"phase.forward", "phase.backward", "phase.optimizer", "phase.reduce", "phase.dispatch",
                             "phase.combine", "layer.attention", "layer.experts", "layer.router", "dispatch.plan"})
      EXPECT_GE(count[name], 3) << name;
    EXPECT_EQ(count["phase.checkpoint"], 1);
    // From the first step to the end of the run: reading the first batch, then saving the last state.
    EXPECT_EQ(spans.front().name, "phase.data");
    const auto last =
        std::max_element(spans.begin(), spans.end(), [](const auto& a, const auto& b) { return a.end_ns < b.end_ns; });
    EXPECT_EQ(last->name, "phase.checkpoint");
    const auto attention =
        std::find_if(spans.begin(), spans.end(), [](const auto& s) { return s.name == "layer.attention"; });
    EXPECT_GE(attention->depth, 1);  // inside phase.forward
  }
  // One clock: a sum over ranks ends on both after the later one has entered it.
  const auto sums = [&](int rank) {
    std::vector<test::TraceSpan> found;
    for (const test::TraceSpan& s : lanes.at(rank))
      if (s.name == "comm.gradients") found.push_back(s);
    return found;
  };
  for (std::size_t step = 0; step < 3; ++step) {
    const test::TraceSpan a = sums(0)[step], b = sums(1)[step];
    EXPECT_LT(std::max(a.start_ns, b.start_ns), std::min(a.end_ns, b.end_ns) + 100'000'000);
  }
}

}  // namespace
}  // namespace emox
