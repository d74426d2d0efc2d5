// Which ranks the watchdog ends a job for, and which it waits for.
#include "parallel/comm/watchdog.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <thread>

#include "parallel/comm/progress.h"
#include "parallel/comm/thread_world.h"
#include "tests/parallel/comm_checks.h"
#include "tests/parallel/comm_errors.h"

namespace emox::test {
namespace {

using std::chrono::milliseconds;

TEST(Watchdog, NamesTheCollectiveAndTheMissingRank) {
  ThreadWorld world(3, {.watchdog_s = 0.5});
  ::testing::internal::CaptureStderr();
  const auto errors = comm_errors(world, [](Communicator& comm) {
    const auto part = comm.split(0, 0);
    part->barrier();
    std::vector<float> x(10);
    if (comm.rank() == 1) {
      std::this_thread::sleep_for(milliseconds(1500));
      comm.barrier();
    } else {
      part->all_reduce(view_of(x));
    }
  });
  const std::string printed = ::testing::internal::GetCapturedStderr();
  for (const std::string& e : errors) {
    EXPECT_TRUE(contains(e, "watchdog: all_reduce #2 on world/1.0 (40 bytes) has not finished on rank 0")) << e;
    EXPECT_TRUE(contains(e, "arrived: 2 of 3 ranks: 0 2")) << e;
    EXPECT_TRUE(contains(e, "rank 1 has not arrived: it finished barrier #1 on world/1.0 (0 bytes)")) << e;
  }
  EXPECT_TRUE(contains(printed, "rank 1 has not arrived")) << printed;
  EXPECT_EQ(printed.find("watchdog:"), printed.rfind("watchdog:")) << "one report is enough:\n" << printed;
}

TEST(Watchdog, SeesARankThatWaitsForItsRows) {
  ThreadWorld world(3, {.watchdog_s = 0.5});
  ::testing::internal::CaptureStderr();
  const auto errors = comm_errors(world, [](Communicator& comm) {
    std::vector<float> in(3), out(3);
    const std::vector<std::int64_t> ones(3, 1);
    comm.all_to_all_v(view_of(out), ones, view_of(in), ones);
    comm.all_to_all_v_start(view_of(out), ones, view_of(in), ones);
    if (comm.rank() == 2) std::this_thread::sleep_for(milliseconds(1500));
    comm.all_to_all_v_finish();
  });
  ::testing::internal::GetCapturedStderr();
  for (const std::string& e : errors) {
    EXPECT_TRUE(contains(e, "watchdog: all_to_all_v #2 on world (12 bytes) has not finished on rank 0")) << e;
    EXPECT_TRUE(contains(e, "rank 2 has not arrived: it finished all_to_all_v #1 on world (12 bytes)")) << e;
  }
}

TEST(Watchdog, LeavesComputingRanksAlone) {
  ThreadWorld world(2, {.watchdog_s = 0.3});
  run_ranks(world, [](Communicator& comm) {
    for (int i = 0; i < 2; ++i) {
      comm.barrier();
      std::this_thread::sleep_for(milliseconds(900));  // all ranks compute for three times the limit
    }
    check_split(comm);
    check_type<float>(comm, 9);
  });
}

/// Works without any collective, and says so.
void work(Communicator& comm, int tenths) {
  for (int i = 0; i < tenths; ++i) {
    std::this_thread::sleep_for(milliseconds(100));
    report_progress(comm);
  }
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

TEST(Watchdog, WaitsForASlowRankThatReportsProgress) {
  ThreadWorld world(3, {.watchdog_s = 0.5});
  ::testing::internal::CaptureStderr();
  run_ranks(world, [](Communicator& comm) {
    const auto pair = comm.split(comm.rank() == 2 ? 1 : 0, 0), other = comm.split(comm.rank() == 0 ? 0 : 1, 0);
    if (comm.rank() == 1) work(*pair, 15);
    comm.barrier();
    // Rank 0 waits for rank 1, that one for rank 2, which shares no smaller communicator with rank 0.
    if (comm.rank() == 2) work(*other, 15);
    if (comm.rank() >= 1) other->barrier();
    if (comm.rank() <= 1) pair->barrier();
  });
  const std::string printed = ::testing::internal::GetCapturedStderr();
  EXPECT_TRUE(contains(printed, "watchdog: barrier #3 on world (0 bytes) has lasted")) << printed;
  EXPECT_TRUE(contains(printed, "on rank 0; the ranks that it waits for are at work")) << printed;
  EXPECT_TRUE(contains(printed, "watchdog: barrier #1 on world/1.0")) << printed;
  EXPECT_FALSE(contains(printed, "has not finished")) << printed;
}

TEST(Watchdog, EndsAJobWhoseSlowRankGetsStuck) {
  ThreadWorld world(2, {.watchdog_s = 0.5});
  ::testing::internal::CaptureStderr();
  const auto start = std::chrono::steady_clock::now();
  double ended = 0;
  const auto errors = comm_errors(world, [&](Communicator& comm) {
    if (comm.rank() == 0) {
      work(comm, 10);
      std::this_thread::sleep_for(milliseconds(2000));
    }
    try {
      comm.barrier();
    } catch (const CommError&) {
      if (comm.rank() == 1) ended = seconds_since(start);
      throw;
    }
  });
  ::testing::internal::GetCapturedStderr();
  EXPECT_GE(ended, 1.4);  // the last report of progress and the limit
  EXPECT_LE(ended, 2.8);
  EXPECT_TRUE(
      contains(errors[1], "rank 0 has not arrived: it has entered no collective yet; it last reported progress"))
      << errors[1];
}

TEST(Watchdog, GivesIoPhasesTheirOwnLimit) {
  ThreadWorld world(2, {.watchdog_s = 0.3, .io_watchdog_s = 1});
  ::testing::internal::CaptureStderr();
  double ended = 0;
  const auto errors = comm_errors(world, [&](Communicator& comm) {
    if (comm.rank() == 0) {
      const IoPhase outer(comm);
      for (int i = 0; i < 2; ++i) {
        const IoPhase inner(comm);  // each has the limit for itself
        std::this_thread::sleep_for(milliseconds(700));
      }
    }
    comm.barrier();
    const auto start = std::chrono::steady_clock::now();
    if (comm.rank() == 0) {
      const IoPhase io(comm);
      std::this_thread::sleep_for(milliseconds(2500));
    }
    try {
      comm.barrier();
    } catch (const CommError&) {
      if (comm.rank() == 1) ended = seconds_since(start);
      throw;
    }
  });
  ::testing::internal::GetCapturedStderr();
  EXPECT_GE(ended, 0.95);
  EXPECT_LE(ended, 2.4);
  EXPECT_TRUE(contains(errors[1], "barrier #2 on world (0 bytes) has not finished on rank 1")) << errors[1];
  EXPECT_TRUE(contains(errors[1], "it is in an I/O phase, without a sign of life for")) << errors[1];
}

TEST(Watchdog, ReportsSilentAndDivergingRanks) {
  Overdue late;
  late.members = {0, 1, 2, 3};
  std::snprintf(late.call.op, sizeof late.call.op, "all_reduce");
  std::snprintf(late.call.comm, sizeof late.call.comm, "world");
  late.call.sequence = 7;
  late.call.inside = 1;
  late.call.seconds = 31;
  RankStatus same{late.call, late.call}, other = same, ahead = same;
  std::snprintf(other.asked.op, sizeof other.asked.op, "barrier");
  ahead.asked.sequence = 8;
  const std::string text = watchdog_report(0, 30, late, {same, std::nullopt, other, ahead});
  EXPECT_TRUE(contains(text, "rank 1 does not answer")) << text;
  EXPECT_TRUE(contains(text, "rank 2 makes another call: barrier #7")) << text;
  EXPECT_TRUE(contains(text, "rank 3 has finished this call")) << text;
  EXPECT_TRUE(contains(watchdog_report(0, 30, late, {same, same, same, same}), "every rank has arrived"));
}

TEST(Watchdog, DoesNotCountTimeInWhichTheProcessStood) {
  ActivityLog log;
  log.open(1, "world", {0});
  log.enter(1, "barrier", 0);
  std::this_thread::sleep_for(milliseconds(50));  // nobody advances the log's clock meanwhile
  EXPECT_FALSE(log.overdue(0.01));
  log.advance(0.02);
  ASSERT_TRUE(log.overdue(0.01));
  EXPECT_TRUE(log.still_inside(*log.overdue(0.01)));
  log.leave(1);
  EXPECT_FALSE(log.overdue(0.01));
}

}  // namespace
}  // namespace emox::test
