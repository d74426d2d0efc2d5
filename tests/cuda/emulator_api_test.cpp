// Mistakes in the use of the run-time library and of cuBLASLt, planted: each is refused or shows in the values, and its
// correct twin is not.
#include <cublasLt.h>
#include <cuda_profiler_api.h>
#include <nvtx3/nvToolsExt.h>

#include <cstdlib>
#include <thread>

#include "runtime/core/bf16.h"
#include "tests/cuda/emulator_testing.h"

namespace emox::test {
namespace {

class EmulatedApi : public EmulatorTest {
 protected:
  /// The call is refused, with this in the report; device work goes on.
  template <typename Code>
  static void expect_refused(Code code, Code want, const std::string& text) {
    EXPECT_EQ(code, want);
    EXPECT_NE(emu::last_report().find(text), std::string::npos) << emu::last_report();
    emu::reset();
  }
};

void set_kernel(int* out, int value) { out[threadIdx.x] = value; }
void copy_kernel(int* out, const int* in) { out[threadIdx.x] = in[threadIdx.x]; }
struct Large {
  int value[16 * 1024];
};
void large_kernel(int* out) {
  Large& s = shared_memory<Large>();
  s.value[16 * 1024 - 1] = 5;
  *out = s.value[16 * 1024 - 1];
}

TEST_F(EmulatedApi, AnEventBetweenTwoStreamsIsMissing) {
  cudaStream_t a, b;
  cudaEvent_t done;
  ASSERT_EQ(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaEventCreateWithFlags(&done, cudaEventDisableTiming), cudaSuccess);
  int *x = device<int>(32), *y = device<int>(32), value = 0;
  const auto run = [&](bool waits) {
    launch(set_kernel, 1, 32, 0, a, x, ++value);
    cudaEventRecord(done, a);
    if (waits) cudaStreamWaitEvent(b, done);
    launch(copy_kernel, 1, 32, 0, b, y, x);
    cudaStreamSynchronize(b);
    const bool right = host(y, 32) == std::vector<int>(32, value);
    cudaStreamSynchronize(a);
    return right;
  };
  expect_no_race([&] { return run(true); });
  expect_race([&] { return run(false); });
  EXPECT_EQ(cudaEventDestroy(done), cudaSuccess);
  expect_refused(cudaEventRecord(done, a), cudaErrorInvalidResourceHandle, "an event that does not exist");
  EXPECT_EQ(cudaStreamDestroy(a), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(b), cudaSuccess);
  expect_refused(cudaStreamSynchronize(b), cudaErrorInvalidResourceHandle, "a stream that does not exist");
}

TEST_F(EmulatedApi, ABlockingStreamKeepsTheOrderOfTheDefaultStream) {
  cudaStream_t blocking, other;
  ASSERT_EQ(cudaStreamCreate(&blocking), cudaSuccess);
  ASSERT_EQ(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking), cudaSuccess);
  int* x = device<int>(32);
  // As when memory is cleared by one stream and used by another.
  const auto run = [&](cudaStream_t s) {
    cudaMemset(x, 0, 128);
    launch(set_kernel, 1, 32, 0, s, x, 7);
    cudaDeviceSynchronize();
    return host(x, 32) == std::vector<int>(32, 7);
  };
  expect_no_race([&] { return run(blocking); });
  expect_race([&] { return run(other); });
  cudaStreamDestroy(blocking);
  cudaStreamDestroy(other);
}

TEST_F(EmulatedApi, StagingMemoryIsUsedAgainTooEarly) {
  int *staging = nullptr, *x = device<int>(4);
  ASSERT_EQ(cudaMallocHost(reinterpret_cast<void**>(&staging), 16), cudaSuccess);
  const auto run = [&](bool waits) {
    for (int i = 0; i < 4; ++i) staging[i] = 1;
    cudaMemcpyAsync(x, staging, 16, cudaMemcpyHostToDevice);
    if (waits) cudaStreamSynchronize(nullptr);
    for (int i = 0; i < 4; ++i) staging[i] = 2;
    return host(x, 4) == std::vector<int>(4, 1);
  };
  expect_no_race([&] { return run(true); });
  expect_race([&] { return run(false); });
  EXPECT_EQ(cudaFreeHost(staging), cudaSuccess);
}

TEST_F(EmulatedApi, CopiesThatAreWrong) {
  std::vector<int> pageable(4);
  int *pinned = nullptr, *x = device<int>(4);
  ASSERT_EQ(cudaHostAlloc(reinterpret_cast<void**>(&pinned), 16, cudaHostAllocDefault), cudaSuccess);
  EXPECT_EQ(cudaMemcpyAsync(x, pinned, 16, cudaMemcpyHostToDevice), cudaSuccess);
  EXPECT_EQ(emu::pending(), 1U);
  expect_refused(cudaMemcpyAsync(x, pageable.data(), 16, cudaMemcpyHostToDevice), cudaErrorInvalidValue, "pageable");
  expect_refused(cudaMemcpyAsync(pageable.data(), x, 16, cudaMemcpyDeviceToHost), cudaErrorInvalidValue, "pageable");
  expect_refused(cudaMemcpyAsync(x, pinned, 20, cudaMemcpyHostToDevice), cudaErrorInvalidValue, "reaches out");
  expect_refused(cudaMemcpyAsync(x + 1, pinned, 16, cudaMemcpyHostToDevice), cudaErrorInvalidValue, "reaches out");
  expect_refused(cudaMemcpyAsync(pinned, x, 16, cudaMemcpyHostToDevice), cudaErrorInvalidValue, "is not device memory");
  expect_refused(cudaMemcpyAsync(x, x + 1, 8, cudaMemcpyDeviceToDevice), cudaErrorInvalidValue, "overlap");
  expect_refused(cudaMemsetAsync(x, 0, 17), cudaErrorInvalidValue, "reaches out");
  EXPECT_EQ(cudaMemcpyAsync(x + 2, x, 8, cudaMemcpyDeviceToDevice), cudaSuccess);
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
  expect_refused(cudaFreeHost(pageable.data()), cudaErrorInvalidValue, "no pinned block");
  expect_refused(cudaFree(x + 1), cudaErrorInvalidValue, "cudaFree of byte 4");
}

TEST_F(EmulatedApi, HostCodeReadsDeviceMemory) {
  volatile int* x = device<int>(4);
  EXPECT_DEATH(static_cast<void>(x[0]), "host code touches device memory: byte 0 of a block of 16 bytes");
  EXPECT_EQ(launch(set_kernel, 1, 4, 0, nullptr, const_cast<int*>(x), 1), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_DEATH(static_cast<void>(x[1]), "host code touches device memory: byte 4 of a block of 16 bytes");
}

TEST_F(EmulatedApi, LaunchesThatAreWrong) {
  int *x = device<int>(32), on_host[32];
  expect_refused(launch(set_kernel, 1, 1025, 0, nullptr, x, 1), cudaErrorInvalidConfiguration, "1025 x 1 x 1 threads");
  expect_refused(launch(set_kernel, 0, 32, 0, nullptr, x, 1), cudaErrorInvalidConfiguration, "0 x 1 x 1 blocks");
  expect_refused(launch(set_kernel, 1, 32, 0, nullptr, on_host, 1), cudaErrorInvalidValue, "argument 1");
  expect_refused(launch(large_kernel, 1, 32, sizeof(Large), nullptr, x), cudaErrorInvalidValue, "was allowed 49152");
  const auto* kernel = reinterpret_cast<const void*>(&large_kernel);
  EXPECT_EQ(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Large)), cudaSuccess);
  EXPECT_EQ(launch(large_kernel, 1, 1, sizeof(Large), nullptr, x), cudaSuccess);
  EXPECT_EQ(host(x, 1)[0], 5);
  cudaFuncAttributes attributes{};
  EXPECT_EQ(cudaFuncGetAttributes(&attributes, kernel), cudaSuccess);
  EXPECT_EQ(attributes.maxDynamicSharedSizeBytes, static_cast<int>(sizeof(Large)));
  expect_refused(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 232449),
                 cudaErrorInvalidValue, "232449");
}

TEST_F(EmulatedApi, MemoryRunsOut) {
  emu::options().memory = emu::options().memory / 8;
  std::size_t free = 0, total = 0;
  ASSERT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  EXPECT_EQ(total, emu::options().memory);
  void* p = &free;
  EXPECT_EQ(cudaMalloc(&p, free + 1), cudaErrorMemoryAllocation);
  EXPECT_EQ(p, nullptr);
  EXPECT_EQ(cudaPeekAtLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  const std::size_t before = emu::allocations();
  ASSERT_EQ(cudaMalloc(&p, 1000), cudaSuccess);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p) % 256, 0U);
  EXPECT_EQ(emu::allocations(), before + 1);
  std::size_t less = 0;
  EXPECT_EQ(cudaMemGetInfo(&less, &total), cudaSuccess);
  EXPECT_EQ(less, free - 1024);
  EXPECT_EQ(cudaFree(p), cudaSuccess);
  EXPECT_EQ(emu::allocations(), before);
}

TEST_F(EmulatedApi, Devices) {
  int n = -1;
  emu::options().devices = 0;
  EXPECT_EQ(cudaGetDeviceCount(&n), cudaErrorNoDevice);
  EXPECT_EQ(n, 0);
  emu::options().driver = 0;
  EXPECT_EQ(cudaGetDeviceCount(&n), cudaErrorInsufficientDriver);
  emu::options() = {};
  emu::options().devices = 2;
  EXPECT_EQ(cudaGetDeviceCount(&n), cudaSuccess);
  EXPECT_EQ(n, 2);
  EXPECT_EQ(cudaSetDevice(2), cudaErrorInvalidDevice);
  cudaDeviceProp prop{};
  EXPECT_EQ(cudaGetDeviceProperties(&prop, 1), cudaSuccess);
  EXPECT_EQ(prop.major, 9);
  char bus[32] = {};
  EXPECT_EQ(cudaDeviceGetPCIBusId(bus, sizeof bus, 1), cudaSuccess);
  EXPECT_STREQ(bus, "0000:02:00.0");
  // A device works on its own memory and its own streams.
  int* x = device<int>(32);
  cudaStream_t s;
  ASSERT_EQ(cudaStreamCreate(&s), cudaSuccess);
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  expect_refused(launch(set_kernel, 1, 32, 0, s, x, 1), cudaErrorInvalidResourceHandle, "while device 1 is current");
  expect_failure([&] { launch(set_kernel, 1, 32, 0, nullptr, x, 1); }, "a block of 128 bytes of device 0");
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
  EXPECT_EQ(launch(set_kernel, 1, 32, 0, s, x, 1), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(s), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(s), cudaSuccess);
}

TEST_F(EmulatedApi, AskingMakesProgress) {
  int* x = device<int>(32);
  cudaStream_t s;
  cudaEvent_t from, to;
  ASSERT_EQ(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaEventCreate(&from), cudaSuccess);
  ASSERT_EQ(cudaEventCreate(&to), cudaSuccess);
  float ms = -1;
  EXPECT_EQ(cudaEventQuery(to), cudaSuccess);  // never recorded
  expect_refused(cudaEventElapsedTime(&ms, from, to), cudaErrorInvalidResourceHandle, "not recorded");
  cudaEventRecord(from, s);
  for (int i = 0; i < 3; ++i) launch(set_kernel, 1, 32, 0, s, x, i);
  cudaEventRecord(to, s);
  EXPECT_EQ(cudaEventElapsedTime(&ms, from, to), cudaErrorNotReady);
  EXPECT_EQ(cudaEventQuery(to), cudaErrorNotReady);
  int asked = 0;
  while (cudaEventQuery(to) == cudaErrorNotReady) ++asked;
  EXPECT_LT(asked, 5);
  EXPECT_EQ(cudaStreamQuery(s), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&ms, from, to), cudaSuccess);
  EXPECT_GE(ms, 0.0F);
  cudaEventDestroy(from);
  cudaEventDestroy(to);
  cudaStreamDestroy(s);
}

TEST_F(EmulatedApi, RanksAreThreads) {
  std::vector<std::thread> ranks;
  std::vector<std::vector<int>> got(4);
  for (int r = 0; r < 4; ++r)
    ranks.emplace_back([&, r] {
      cudaStream_t s;
      cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
      int *x = nullptr, *pinned = nullptr;
      cudaMalloc(&x, 128);
      cudaMallocHost(reinterpret_cast<void**>(&pinned), 128);
      for (int i = 0; i < 20; ++i) {
        launch(set_kernel, 1, 32, 0, s, x, 100 * r + i);
        cudaMemcpyAsync(pinned, x, 128, cudaMemcpyDeviceToHost, s);
        cudaStreamSynchronize(s);
        got[idx(r)].push_back(pinned[31]);
      }
      cudaFree(x);
      cudaFreeHost(pinned);
      cudaStreamDestroy(s);
    });
  for (std::thread& t : ranks) t.join();
  for (int r = 0; r < 4; ++r)
    for (int i = 0; i < 20; ++i) EXPECT_EQ(got[idx(r)][idx(i)], 100 * r + i);
}

TEST_F(EmulatedApi, RangesAreCounted) {
  EXPECT_EQ(nvtxRangePushA("step"), 0);
  EXPECT_EQ(nvtxRangePushA("layer"), 1);
  EXPECT_EQ(emu::open_ranges(), 2);
  EXPECT_EQ(nvtxRangePop(), 1);
  EXPECT_EQ(nvtxRangePop(), 0);
  EXPECT_EQ(cudaProfilerStart(), cudaSuccess);
  EXPECT_EQ(cudaProfilerStop(), cudaSuccess);
}

}  // namespace
}  // namespace emox::test
