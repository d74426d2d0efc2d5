// Mistakes of kernels, planted: the emulator sees each, and nothing where there is none.
#include <cmath>
#include <cstdlib>
#include <numeric>

#include "tests/cuda/emulator_testing.h"

namespace emox::test {
namespace {

class EmulatedKernel : public EmulatorTest {};

struct Slots {
  int value[256];
};
/// The values of the block, the other way round.
template <bool kBarrier>
void reverse_kernel(int* out) {
  Slots& s = shared_memory<Slots>();
  s.value[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (kBarrier) __syncthreads();
  out[threadIdx.x] = s.value[255 - threadIdx.x];
}
/// Rounds of the same: the second barrier keeps a fast thread from writing what a slow one still reads.
template <bool kSecond>
void rounds_kernel(int* out) {
  Slots& s = shared_memory<Slots>();
  int sum = 0;
  for (int round = 0; round < 4; ++round) {
    s.value[threadIdx.x] = round;
    __syncthreads();
    sum += s.value[255 - threadIdx.x];
    if (kSecond) __syncthreads();
  }
  out[threadIdx.x] = sum;
}
/// Lane 0 reads what the other lanes write.
template <bool kBarrier>
void lanes_kernel(int* out) {
  Slots& s = shared_memory<Slots>();
  s.value[threadIdx.x] = 1;
  if (kBarrier) __syncwarp();
  int sum = 0;
  for (int i = 0; i < 32; ++i) sum += s.value[i];
  out[threadIdx.x] = sum;
}

TEST_F(EmulatedKernel, ABarrierIsMissing) {
  int* out = device<int>(256);
  std::vector<int> want(256);
  for (int i = 0; i < 256; ++i) want[idx(i)] = 255 - i;
  const auto run = [&](auto kernel) {
    EXPECT_EQ(launch(kernel, 1, 256, sizeof(Slots), nullptr, out), cudaSuccess);
    return host(out, 256) == want;
  };
  expect_no_race([&] { return run(reverse_kernel<true>); });
  expect_race([&] { return run(reverse_kernel<false>); });
}

TEST_F(EmulatedKernel, TheSecondBarrierOfALoopIsMissing) {
  int* out = device<int>(256);
  const auto run = [&](auto kernel) {
    EXPECT_EQ(launch(kernel, 1, 256, sizeof(Slots), nullptr, out), cudaSuccess);
    return host(out, 256) == std::vector<int>(256, 6);
  };
  expect_no_race([&] { return run(rounds_kernel<true>); });
  expect_race([&] { return run(rounds_kernel<false>); });
}

TEST_F(EmulatedKernel, ASyncwarpIsMissing) {
  int* out = device<int>(32);
  const auto run = [&](auto kernel) {
    EXPECT_EQ(launch(kernel, 1, 32, sizeof(Slots), nullptr, out), cudaSuccess);
    return host(out, 32) == std::vector<int>(32, 32);
  };
  expect_no_race([&] { return run(lanes_kernel<true>); });
  expect_race([&] { return run(lanes_kernel<false>); });
}

/// Each block adds to one place; only an atomic may.
template <bool kAtomic>
void count_kernel(int* out) {
  if (kAtomic)
    atomicAdd(out, 1);
  else if (threadIdx.x == 0)
    *out += 1;
}

TEST_F(EmulatedKernel, BlocksShareAWord) {
  int* out = device(std::vector<int>{0});
  EXPECT_EQ(launch(count_kernel<true>, 7, 64, 0, nullptr, out), cudaSuccess);
  EXPECT_EQ(host(out, 1)[0], 7 * 64);
  // Blocks run one after another, so that only ThreadSanitizer sees it.
  if (!emu::under_tsan()) GTEST_SKIP();
  expect_race([&] { return launch(count_kernel<false>, 7, 64, 0, nullptr, out) == cudaDeviceSynchronize(); });
}

void unwritten_kernel(float* out) {
  struct Floats {
    float value[64];
  };
  Floats& s = shared_memory<Floats>();
  if (threadIdx.x < 32) s.value[threadIdx.x] = 1.0F;
  __syncthreads();
  out[threadIdx.x] = s.value[threadIdx.x];
}

TEST_F(EmulatedKernel, WhatNobodyWroteIsNaN) {
  float* out = device<float>(64);
  EXPECT_TRUE(std::isnan(host(out, 64)[63]));  // fresh memory, too
  for (int i = 0; i < 2; ++i) {                // the second time as the first
    EXPECT_EQ(launch(unwritten_kernel, 3, 64, 256, nullptr, out), cudaSuccess);
    const std::vector<float> got = host(out, 64);
    EXPECT_EQ(got[31], 1.0F);
    EXPECT_TRUE(std::isnan(got[32]));
  }
}

// Indices come as arguments, so that the compiler knows nothing of them.
void read_kernel(float* out, const float* in, std::int64_t at) { out[threadIdx.x] = in[at]; }
void write_kernel(float* out, std::int64_t at) { out[at] = 1.0F; }

TEST_F(EmulatedKernel, ReadsBeyondABlock) {
  float *in = device<float>(1024), *out = device<float>(32);
  EXPECT_EQ(launch(read_kernel, 1, 32, 0, nullptr, out, in, std::int64_t{1023}), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  expect_wrong_access([&] { launch(read_kernel, 1, 32, 0, nullptr, out, in, std::int64_t{1024}); },
                      "0 bytes after the end of a block of 4096 bytes");
  expect_wrong_access([&] { launch(read_kernel, 1, 32, 0, nullptr, out, in, std::int64_t{-2000}); }, "before a block");
  EXPECT_EQ(launch(read_kernel, 1, 32, 0, nullptr, out, in, std::int64_t{0}), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

TEST_F(EmulatedKernel, WritesBesideABlock) {
  float* out = device<float>(25);  // 100 bytes, and as many as are lacking to 256 after it
  EXPECT_EQ(launch(write_kernel, 1, 1, 0, nullptr, out, std::int64_t{24}), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  expect_wrong_access([&] { launch(write_kernel, 1, 1, 0, nullptr, out, std::int64_t{26}); }, "wrote after the end");
  float* other = device<float>(25);
  expect_wrong_access([&] { launch(write_kernel, 1, 1, 0, nullptr, other, std::int64_t{-1}); },
                      "wrote before the begin");
}

void shared_write_kernel(std::int64_t at) { shared_memory<Slots>().value[at] = 1; }

TEST_F(EmulatedKernel, WritesBeyondSharedMemory) {
  EXPECT_EQ(launch(shared_write_kernel, 1, 1, sizeof(Slots), nullptr, std::int64_t{255}), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  expect_wrong_access([&] { launch(shared_write_kernel, 1, 1, sizeof(Slots), nullptr, std::int64_t{256}); },
                      "outside of the block's shared memory");
  expect_wrong_access([&] { launch(shared_write_kernel, 1, 1, sizeof(Slots) + 12, nullptr, std::int64_t{260}); },
                      "after the end of its shared memory");
  expect_failure([&] { launch(shared_write_kernel, 1, 1, sizeof(Slots) - 1, nullptr, std::int64_t{0}); },
                 "uses 1024 bytes of shared memory");
}

TEST_F(EmulatedKernel, UsesWhatWasFreed) {
  float *in = device<float>(1024), *out = device<float>(32);
  EXPECT_EQ(cudaFree(in), cudaSuccess);
  expect_wrong_access([&] { launch(read_kernel, 1, 32, 0, nullptr, out, in, std::int64_t{5}); },
                      "byte 20 of a freed block");
  // Work that was enqueued before is done before.
  float* late = device<float>(1024);
  EXPECT_EQ(launch(read_kernel, 1, 32, 0, nullptr, out, late, std::int64_t{5}), cudaSuccess);
  EXPECT_EQ(cudaFree(late), cudaSuccess);
  EXPECT_EQ(cudaFree(late), cudaErrorInvalidValue);
}

__attribute__((noinline, noclone)) void deep_kernel(float* out, int depth) {
  volatile float frame[256];
  for (int i = 0; i < 256; ++i) frame[i] = 1.0F;
  if (depth > 0) deep_kernel(out, depth - 1);
  out[0] += frame[threadIdx.x];
}

TEST_F(EmulatedKernel, NeedsTooMuchStack) {
  float* out = device(std::vector<float>{0.0F});
  EXPECT_EQ(launch(deep_kernel, 1, 1, 0, nullptr, out, 20), cudaSuccess);
  EXPECT_EQ(host(out, 1)[0], 21.0F);
  if (emu::under_asan()) GTEST_SKIP() << "AddressSanitizer ends the program itself";
  expect_failure([&] { launch(deep_kernel, 1, 1, 0, nullptr, out, 100000); }, "more stack than there is");
}

void divergent_kernel(int* out, unsigned first) {
  if (threadIdx.x >= first) __syncthreads();
  out[threadIdx.x] = __any_sync(~0U, 1);
}
void two_barriers_kernel(unsigned first) {
  // NOLINTNEXTLINE(bugprone-branch-clone): the mistake itself
  if (threadIdx.x >= first)
    __syncthreads();
  else
    __syncthreads();
}
void ends_early_kernel(int* out, unsigned first) {
  if (threadIdx.x >= first) return;
  __syncthreads();
  out[threadIdx.x] = __syncthreads_count(1);
}
void two_functions_kernel(unsigned first) {
  if (threadIdx.x >= first)
    __shfl_xor_sync(~0U, 1, 1);
  else
    __any_sync(~0U, 1);
}
void outside_of_mask_kernel(unsigned mask) { __syncwarp(mask); }

TEST_F(EmulatedKernel, BarriersThatNotAllReach) {
  int* out = device<int>(64);
  EXPECT_EQ(launch(divergent_kernel, 1, 64, 0, nullptr, out, 0U), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  expect_failure([&] { launch(divergent_kernel, 1, 64, 0, nullptr, out, 8U); }, "never ends");
  EXPECT_EQ(launch(two_barriers_kernel, 1, 64, 0, nullptr, 0U), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  expect_failure([&] { launch(two_barriers_kernel, 1, 64, 0, nullptr, 8U); }, "different __syncthreads");
  // Threads that have ended are not waited for, as on a device.
  EXPECT_EQ(launch(ends_early_kernel, 1, 64, 0, nullptr, out, 40U), cudaSuccess);
  EXPECT_EQ(host(out, 40), std::vector<int>(40, 40));
}

TEST_F(EmulatedKernel, LanesThatDoNotMeet) {
  EXPECT_EQ(launch(two_functions_kernel, 1, 32, 0, nullptr, 0U), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  expect_failure([&] { launch(two_functions_kernel, 1, 32, 0, nullptr, 8U); }, " meets a ");
  expect_failure([&] { launch(outside_of_mask_kernel, 1, 32, 0, nullptr, 0xffffU); }, "outside of its mask");
}

void throwing_kernel() { throw std::runtime_error("not on a device"); }

TEST_F(EmulatedKernel, AnExceptionLeavesIt) {
  expect_failure([&] { launch(throwing_kernel, 1, 32, 0, nullptr); }, "not on a device");
}

}  // namespace
}  // namespace emox::test
