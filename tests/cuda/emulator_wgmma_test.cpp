// What the emulator says of wgmma: the product as PTX defines it, and mistakes that a device would not report.
#include <cuda_runtime.h>
#include <device_ptx.h>
#include <device_wgmma.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "runtime/core/bf16.h"
#include "runtime/core/idx.h"
#include "tests/support/cuda_emulator/emulator.h"
#include "tests/support/cuda_emulator/sanitizers.h"

namespace emox::test {
namespace {

constexpr int kRows = 64, kColumns = 256, kDepth = 64, kThreads = 128;

enum class Mistake {
  None,
  NoCopyWait,
  NoProxyFence,
  FenceBeforeCopyWait,
  NoBarrier,
  NoWgmmaFence,
  NoCommit,
  NoWait,
  WaitForTooFew,
  OverwriteEarly,
  NoSwizzle,
  OneWarpLess,
  OtherOperandOfOneWarp,
  OtherOperandOfOneLane,
  OddStart,
  BeyondTheEnd
};

struct Shared {
  alignas(1024) std::uint16_t a[kRows * kDepth];
  alignas(1024) std::uint16_t b[kColumns * kDepth];
};

/// Rows of 128 bytes from `from` to swizzled shared memory; of lines across K, blocks of 64 of them.
void copy(std::uint16_t* to, const std::uint16_t* from, int lines, bool across, bool swizzle) {
  for (int i = static_cast<int>(threadIdx.x); i < lines * kDepth / 8; i += kThreads) {
    const int per_row = across ? lines / 8 : kDepth / 8, row = i / per_row, piece = i % per_row;
    const int place = piece / 8 * kDepth * 64 + row * 64 + 8 * (piece % 8 ^ (swizzle ? row % 8 : 0));
    copy_async_16(to + place, from + 8 * i, true);
  }
}

template <bool kAcrossA, bool kAcrossB>
void product(float* c, const std::uint16_t* a, const std::uint16_t* b, Mistake m) {
  auto& s = shared_memory<Shared>();
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  copy(s.a, a, kRows, kAcrossA, m != Mistake::NoSwizzle);
  copy(s.b, b, kColumns, kAcrossB, true);
  copy_async_commit();
  if (m == Mistake::FenceBeforeCopyWait) fence_async_proxy();
  if (m != Mistake::NoCopyWait) copy_async_wait<0>();
  if (m != Mistake::NoProxyFence && m != Mistake::FenceBeforeCopyWait) fence_async_proxy();
  if (m != Mistake::NoBarrier) __syncthreads();
  float sum[128] = {};
  const int start_a = m == Mistake::OddStart ? 64 : 0, start_b = m == Mistake::BeyondTheEnd ? 64 * kDepth : 0;
  std::uint64_t at_a = wgmma_operand(s.a + start_a, 8192, 1024);
  const std::uint64_t at_b = wgmma_operand(s.b + start_b, 8192, 1024);
  if ((m == Mistake::OtherOperandOfOneWarp && warp == 2) || (m == Mistake::OtherOperandOfOneLane && thread == 40))
    at_a = wgmma_advance(at_a, 32);
  if (m != Mistake::NoWgmmaFence) wgmma_fence();
  for (int k = 0; k < kDepth / 16; ++k)
    if (m != Mistake::OneWarpLess || warp != 3 || k != 1)
      wgmma_m64n256k16<kAcrossA, kAcrossB>(sum, wgmma_advance(at_a, k * (kAcrossA ? 2048 : 32)),
                                           wgmma_advance(at_b, k * (kAcrossB ? 2048 : 32)));
  if (m != Mistake::NoCommit) wgmma_commit();
  if (m == Mistake::OverwriteEarly) {
    __syncthreads();  // all products have begun
    copy(s.b, b, kColumns, kAcrossB, true);
  }
  if (m == Mistake::WaitForTooFew)
    wgmma_wait<1>();
  else if (m != Mistake::NoWait)
    wgmma_wait<0>();
  for (int i = 0; i < 128; ++i) {
    const int row = 16 * warp + thread % 32 / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + thread % 4 * 2 + i % 2;
    c[row * kColumns + column] = sum[i];
  }
  if (m == Mistake::NoWait || m == Mistake::WaitForTooFew) wgmma_wait<0>();
}

class EmulatedWgmma : public ::testing::Test {
 protected:
  ~EmulatedWgmma() override {
    for (void* p : taken_) cudaFree(p);
    emu::reset();
  }
  template <typename T>
  T* device(const std::vector<T>& v) {
    void* p = nullptr;
    EXPECT_EQ(cudaMalloc(&p, v.size() * sizeof(T)), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
    taken_.push_back(p);
    return static_cast<T*>(p);
  }
  /// The product of small integers; empty when the device stopped, for which see emu::last_report().
  template <bool kAcrossA, bool kAcrossB>
  std::vector<float> run(Mistake m) {
    std::vector<std::uint16_t> a(kRows * kDepth), b(kColumns * kDepth);
    for (int k = 0; k < kDepth; ++k) {
      for (int i = 0; i < kRows; ++i) a[idx(kAcrossA ? k * kRows + i : i * kDepth + k)] = Bf16(value_a(i, k)).bits();
      for (int j = 0; j < kColumns; ++j)
        b[idx(kAcrossB ? k * kColumns + j : j * kDepth + k)] = Bf16(value_b(j, k)).bits();
    }
    std::vector<float> c(kRows * kColumns, -1.0F);
    float* const dc = device(c);
    const auto kernel = product<kAcrossA, kAcrossB>;
    EXPECT_EQ(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   sizeof(Shared)),
              cudaSuccess);
    cudaLaunchConfig_t config{};
    config.gridDim = 1;
    config.blockDim = kThreads;
    config.dynamicSmemBytes = sizeof(Shared);
    EXPECT_EQ(cudaLaunchKernelEx(&config, kernel, dc, device(a), device(b), m), cudaSuccess);
    if (cudaDeviceSynchronize() != cudaSuccess) return {};
    EXPECT_EQ(cudaMemcpy(c.data(), dc, c.size() * sizeof(float), cudaMemcpyDeviceToHost), cudaSuccess);
    return c;
  }
  static float value_a(int i, int k) { return static_cast<float>((3 * i + 5 * k) % 11 - 5); }
  static float value_b(int j, int k) { return static_cast<float>((7 * j + k * k) % 13 - 6); }
  static std::vector<float> expected() {
    std::vector<float> c;
    for (int i = 0; i < kRows; ++i)
      for (int j = 0; j < kColumns; ++j) {
        float sum = 0;
        for (int k = 0; k < kDepth; ++k) sum += value_a(i, k) * value_b(j, k);
        c.push_back(sum);
      }
    return c;
  }
  static void expect_nan(const std::vector<float>& c) {
    ASSERT_FALSE(c.empty());
    EXPECT_TRUE(std::any_of(c.begin(), c.end(), [](float x) { return std::isnan(x); }));
  }

 private:
  std::vector<void*> taken_;
};

TEST_F(EmulatedWgmma, MultipliesOperandsAlongAndAcrossK) {
  EXPECT_EQ((run<false, false>(Mistake::None)), expected());
  EXPECT_EQ((run<false, true>(Mistake::None)), expected());
  EXPECT_EQ((run<true, false>(Mistake::None)), expected());
  EXPECT_EQ((run<true, true>(Mistake::None)), expected());
}

TEST_F(EmulatedWgmma, SumsAreNotThereBeforeTheWait) {
  expect_nan(run<false, false>(Mistake::NoWait));
  expect_nan(run<false, true>(Mistake::WaitForTooFew));
}

TEST_F(EmulatedWgmma, OperandsMustStayUntilTheWait) {
  if (emu::under_tsan()) {  // which sees a race, and is right
    EXPECT_EXIT((run<true, true>(Mistake::OverwriteEarly), std::exit(0)), ::testing::ExitedWithCode(66), "data race");
    return;
  }
  expect_nan(run<true, true>(Mistake::OverwriteEarly));
}

TEST_F(EmulatedWgmma, OperandsLieSwizzled) {
  const std::vector<float> c = run<false, false>(Mistake::NoSwizzle);
  ASSERT_FALSE(c.empty());
  EXPECT_NE(c, expected());
}

TEST_F(EmulatedWgmma, MistakesStopTheDevice) {
  const std::pair<Mistake, const char*> cases[] = {
      {Mistake::NoCopyWait, "reads what cp.async has not brought yet"},
      {Mistake::NoProxyFence, "without a fence of the async proxy"},
      {Mistake::FenceBeforeCopyWait, "without a fence of the async proxy"},
      {Mistake::NoWgmmaFence, "without wgmma.fence"},
      {Mistake::NoCommit, "ended before its wgmma"},
      {Mistake::OneWarpLess, "warps of one group"},
      {Mistake::OtherOperandOfOneWarp, "warps of one group ask for different products"},
      {Mistake::OtherOperandOfOneLane, "lanes of one warp have different operands"},
      {Mistake::OddStart, "do not begin at a multiple of 1024"},
      {Mistake::BeyondTheEnd, "outside of the block's shared memory"}};
  for (const auto& [mistake, text] : cases) {
    EXPECT_TRUE((run<false, false>(mistake).empty())) << text;
    EXPECT_NE(emu::last_report().find(text), std::string::npos) << text << ": " << emu::last_report();
    emu::reset();
  }
}

// What a warp then reads of another's depends on who came first.
TEST_F(EmulatedWgmma, ABarrierMustFollowTheFence) {
  EXPECT_TRUE((run<false, false>(Mistake::NoBarrier).empty()));
  EXPECT_NE(emu::last_report().find("wgmma reads what"), std::string::npos) << emu::last_report();
}

}  // namespace
}  // namespace emox::test
