// Which cores a list names, and a thread that stays on some of its own.
#include "runtime/cpu/affinity.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "runtime/core/idx.h"
#include "tests/support/support.h"

namespace emox {
namespace {

bool has(const cpu::CoreMask& mask, int core) { return (mask[idx(core / 8)] >> (core % 8) & 1) != 0; }

TEST(Affinity, ListsOfCores) {
  const cpu::CoreMask some = cpu::cores_of_list("0-2,9,64-65");
  EXPECT_EQ(cpu::count_of(some), 6);
  for (const int core : {0, 1, 2, 9, 64, 65}) EXPECT_TRUE(has(some, core)) << core;
  EXPECT_EQ(cpu::count_of(cpu::cores_of_list("4095")), 1);
  for (const char* wrong : {"", "x", "1-", "3-2", "-1", "1-2x", "4096", "1;2"})
    EXPECT_EQ(cpu::count_of(cpu::cores_of_list(wrong)), 0) << wrong;
}

TEST(Affinity, CoresBesideADevice) {
  const test::TemporaryDirectory directory;
  const auto device = directory.path() / "0000:1b:00.0";
  std::filesystem::create_directory(device);
  std::ofstream(device / "local_cpulist") << "4-7\n";
  EXPECT_EQ(cpu::cores_near("0000:1B:00.0", directory.path().string()), cpu::cores_of_list("4-7"));
  EXPECT_EQ(cpu::count_of(cpu::cores_near("0000:2B:00.0", directory.path().string())), 0);
}

TEST(Affinity, AThreadStaysOnSomeOfItsCores) {
  const cpu::CoreMask all = cpu::allowed_cores();
  int first = 0;
  while (!has(all, first)) ++first;
  cpu::CoreMask one{}, none{};
  one[idx(first / 8)] = static_cast<std::uint8_t>(1U << (first % 8));
  for (std::size_t i = 0; i < none.size(); ++i) none[i] = static_cast<std::uint8_t>(~all[i]);
  std::thread([&] {
    EXPECT_EQ(cpu::stay_on(none), 0);  // it may not go there
    EXPECT_EQ(cpu::allowed_cores(), all);
    EXPECT_EQ(cpu::stay_on(one), 1);
    EXPECT_EQ(cpu::allowed_cores(), one);
    std::thread([&] { EXPECT_EQ(cpu::allowed_cores(), one); }).join();
  }).join();
  EXPECT_EQ(cpu::allowed_cores(), all);
}

}  // namespace
}  // namespace emox
