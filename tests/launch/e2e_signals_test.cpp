// A signal may come at any moment, also while every thread is inside a matrix product: it is noted, and nothing breaks.
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <thread>
#include <vector>

#include "launch/run/signals.h"
#include "runtime/ops/basic.h"
#include "runtime/ops/matmul.h"
#include "tests/support/support.h"

namespace emox {
namespace {

using Clock = std::chrono::steady_clock;

/// Waits until one is received; returns it.
int wait_for_signal() {
  const auto end = Clock::now() + std::chrono::seconds(10);
  while (StopSignals::received() == 0 && Clock::now() < end) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return StopSignals::received();
}

TEST(StopSignals, EachOneIsReceived) {
  for (const int signal : {SIGUSR1, SIGUSR2, SIGTERM, SIGINT, SIGHUP}) {
    const StopSignals signals;
    EXPECT_EQ(StopSignals::received(), 0);
    kill(getpid(), signal);
    EXPECT_EQ(wait_for_signal(), signal);
    // A second object sees the same, and its end does not stop the first one's waiting.
    { EXPECT_EQ(StopSignals().received(), signal); }
    EXPECT_EQ(StopSignals::received(), signal);
  }
}

TEST(StopSignals, AnEndIsNotTakenForAPause) {
  const StopSignals signals;
  kill(getpid(), SIGTERM);
  EXPECT_EQ(wait_for_signal(), SIGTERM);
  kill(getpid(), SIGUSR1);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_EQ(StopSignals::received(), SIGTERM);
}

TEST(StopSignals, ASecondInterruptEndsTheProcess) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        const StopSignals signals;
        kill(getpid(), SIGINT);
        wait_for_signal();
        kill(getpid(), SIGINT);
        std::this_thread::sleep_for(std::chrono::seconds(10));
      },
      testing::KilledBySignal(SIGINT), "");
}

// oneDNN's sgemm lets the stack pointer point into the heap. A handler that ran on this thread would write its frame
// there: this test then ends with "corrupted size vs. prev_size" within the first hundred signals.
TEST(StopSignals, AMatrixProductIsNotDisturbed) {
  const StopSignals signals;
  std::atomic<bool> done = false;
  std::thread storm([&] {
    while (!done) {
      kill(getpid(), SIGUSR1);
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  });
  Context ctx;
  std::int64_t wrong = 0;
  const auto end = Clock::now() + std::chrono::seconds(2);
  while (Clock::now() < end) {
    for (const std::int64_t m : {64, 300, 3072}) {
      // New memory each time: what a stray frame hits is in use.
      const Tensor a({}, DType::F32, {m, 64}), b({}, DType::F32, {96, 64}), c({}, DType::F32, {m, 96});
      ops::fill(ctx, a, 1.0F);
      ops::fill(ctx, b, 2.0F);
      ops::matmul_nt(ctx, c, a, b);
      const Tensor d({}, DType::F32, {m, 64});
      ops::matmul_nn(ctx, d, c, b);
      const Tensor e({}, DType::F32, {96, 64});
      ops::matmul_tn(ctx, e, c, a);
      for (const float v : test::values_of<float>(c)) wrong += v != 128.0F;
      for (const float v : test::values_of<float>(d)) wrong += v != 128.0F * 192.0F;
      for (const float v : test::values_of<float>(e)) wrong += v != 128.0F * static_cast<float>(m);
    }
  }
  done = true;
  storm.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(StopSignals::received(), SIGUSR1);
}

}  // namespace
}  // namespace emox
