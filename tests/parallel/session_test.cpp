// How many threads a rank takes when nobody says.
#include "launch/run/session.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <cstdlib>
#include <set>
#include <string>
#include <vector>

#include "runtime/core/idx.h"
#include "runtime/cpu/affinity.h"
#include "tests/support/ranks.h"

namespace emox {
namespace {

class DefaultThreads : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : kNames)
      if (const char* value = std::getenv(name)) saved_.emplace_back(name, value), ::unsetenv(name);
  }
  void TearDown() override {
    for (const char* name : kNames) ::unsetenv(name);
    for (const auto& [name, value] : saved_) ::setenv(name.c_str(), value.c_str(), 1);
  }
  static std::vector<int> cores() {
    std::vector<int> cores;
    const cpu::CoreMask mask = cpu::allowed_cores();
    for (std::size_t i = 0; i < 8 * mask.size(); ++i)
      if ((mask[i / 8] >> (i % 8) & 1) != 0) cores.push_back(static_cast<int>(i));
    return cores;
  }
  static void bind(const std::vector<int>& cores) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (const int core : cores) CPU_SET(idx(core), &set);
    ASSERT_EQ(sched_setaffinity(0, sizeof set, &set), 0);  // of this thread, which is a rank
  }
  static constexpr const char* kNames[] = {"OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY"};
  std::vector<std::pair<std::string, std::string>> saved_;
};

TEST_F(DefaultThreads, AreAShareOfTheCoresThatARankMayUse) {
  const std::vector<int> all = cores();
  const int count = static_cast<int>(all.size());
  ASSERT_EQ(count, cpu::count_of(cpu::allowed_cores()));
  for (const int ranks : {1, 2, 3})
    test::run_ranks(ranks, [&](Communicator& comm) { EXPECT_EQ(default_threads(comm), std::max(count / ranks, 1)); });
  EXPECT_EQ(default_threads(1), count);
  if (count < 2) return;
  // Bound to cores of their own, ranks do not share them; bound to the same, they do.
  test::run_ranks(2, [&](Communicator& comm) {
    bind({all[idx(comm.rank())]});
    EXPECT_EQ(default_threads(comm), 1);
  });
  test::run_ranks(2, [&](Communicator& comm) {
    bind({all[0], all[1]});
    EXPECT_EQ(default_threads(comm), 1);
  });
  test::run_ranks(2, [&](Communicator& comm) {
    bind(comm.rank() == 0 ? std::vector{all[0], all[1]} : std::vector{all[0]});
    EXPECT_EQ(default_threads(comm), comm.rank() == 0 ? 2 : 1);
  });
}

TEST_F(DefaultThreads, TheEnvironmentDecidesFirst) {
  ::setenv("OMP_NUM_THREADS", "7", 1);
  test::run_ranks(2, [](Communicator& comm) { EXPECT_EQ(default_threads(comm), 7); });
  EXPECT_EQ(default_threads(3), 7);
}

}  // namespace
}  // namespace emox
