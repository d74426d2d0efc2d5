// What the emulator's own tests share: launching, and how a planted mistake shows, which depends on the sanitizer that
// the program is linked with.
#pragma once

#include <cuda_runtime.h>
#include <device_ptx.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "runtime/core/idx.h"
#include "tests/support/cuda_emulator/emulator.h"
#include "tests/support/cuda_emulator/sanitizers.h"

namespace emox::test {

class EmulatorTest : public ::testing::Test {
 protected:
  EmulatorTest() {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    before_ = emu::options();
    emu::options() = {};
    emu::reset();
  }
  ~EmulatorTest() override {
    emu::options() = before_;
    emu::reset();
  }

  emu::Options before_;

  static void reseed(std::uint64_t seed) {
    emu::options().seed = seed;
    emu::reset();
  }
  template <typename... P, typename... A>
  static cudaError_t launch(void (*kernel)(P...), unsigned blocks, unsigned threads, std::size_t shared, cudaStream_t s,
                            A... arguments) {
    cudaLaunchConfig_t config{};
    config.gridDim = {blocks};
    config.blockDim = {threads};
    config.dynamicSmemBytes = shared;
    config.stream = s;
    return cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...);
  }
  /// Device memory, 0xff in every byte; freed when the test ends.
  template <typename T>
  T* device(std::int64_t n) {
    T* p = nullptr;
    EXPECT_EQ(cudaMalloc(&p, idx(n) * sizeof(T)), cudaSuccess);
    return p;
  }
  template <typename T>
  T* device(const std::vector<T>& values) {
    T* p = device<T>(static_cast<std::int64_t>(values.size()));
    EXPECT_EQ(cudaMemcpy(p, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
    return p;
  }
  template <typename T>
  static std::vector<T> host(const T* p, std::int64_t n) {
    std::vector<T> v(idx(n));
    EXPECT_EQ(cudaMemcpy(v.data(), p, v.size() * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
    return v;
  }

  /// What is enqueued ends in a launch failure whose report holds the text.
  template <typename F>
  static void expect_failure(F run, const std::string& text) {
    run();
    EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorLaunchFailure);
    EXPECT_NE(emu::last_report().find(text), std::string::npos) << emu::last_report();
    EXPECT_NE(std::string(cudaGetErrorString(cudaErrorLaunchFailure)).find(text), std::string::npos);
    void* p = nullptr;
    EXPECT_EQ(cudaMalloc(&p, 8), cudaErrorLaunchFailure);  // and so does everything after it
    emu::reset();
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }
  /// A wrong access: AddressSanitizer ends the program at it.
  template <typename F>
  static void expect_wrong_access(F run, const std::string& text) {
    if (emu::under_asan())
      EXPECT_DEATH((run(), cudaDeviceSynchronize()), "AddressSanitizer");
    else
      expect_failure(run, text);
  }
  /// A race: ThreadSanitizer says so; without it, some orders give wrong values. `right` runs and says whether they
  /// are.
  template <typename F>
  static void expect_race(F right) {
    if (emu::under_tsan()) {
      EXPECT_EXIT((right(), std::exit(0)), ::testing::ExitedWithCode(66), "data race");
      return;
    }
    int wrong = 0;
    for (std::uint64_t seed = 1; seed <= 32; ++seed) {
      reseed(seed);
      if (!right()) ++wrong;
    }
    EXPECT_GT(wrong, 0);
  }
  template <typename F>
  static void expect_no_race(F right) {
    for (std::uint64_t seed = 1; seed <= (emu::under_tsan() ? 4 : 32); ++seed) {
      reseed(seed);
      EXPECT_TRUE(right()) << "seed " << seed;
    }
  }
};

}  // namespace emox::test
