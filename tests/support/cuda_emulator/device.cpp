// The run-time library's devices and kernels.
#include <cuda_profiler_api.h>
#include <cuda_runtime.h>
#include <nvtx3/nvToolsExt.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <map>

#include "tests/support/cuda_emulator/block.h"
#include "tests/support/cuda_emulator/heap.h"
#include "tests/support/cuda_emulator/state.h"

namespace emu {
namespace {

// Of a Hopper GPU, but for the number of processors, which is small so that tests are fast.
constexpr int kProcessors = 4, kThreads = 1024, kShared = 48 << 10, kSharedMost = 232448, kSharedProcessor = 233472,
              kRegisters = 65536, kL2 = 50 << 20, kMajor = 9, kMinor = 0;

thread_local int device = 0;
std::atomic<int> ranges{0};

/// How much dynamic shared memory kernels were allowed beyond the usual.
std::map<const void*, int>& allowed() {
  static auto& all = *new std::map<const void*, int>;
  return all;
}
int allowed_of(const void* kernel) {
  const auto at = allowed().find(kernel);
  return at == allowed().end() ? kShared : std::max(at->second, kShared);
}

cudaError_t check_device(int number) {
  if (trouble() != cudaSuccess) return answer(trouble());
  return number >= 0 && number < options().devices ? cudaSuccess : answer(cudaErrorInvalidDevice);
}

std::string size_text(dim3 d) {
  return std::to_string(d.x) + " x " + std::to_string(d.y) + " x " + std::to_string(d.z);
}

std::string wrong_launch(const cudaLaunchConfig_t& config, const void* kernel, cudaError_t& code) {
  const dim3 g = config.gridDim, b = config.blockDim;
  const std::uint64_t threads = std::uint64_t{b.x} * b.y * b.z;
  code = cudaErrorInvalidConfiguration;
  if (threads == 0 || threads > kThreads || b.x > 1024 || b.y > 1024 || b.z > 64)
    return "a block of " + size_text(b) + " threads";
  if (g.x == 0 || g.y == 0 || g.z == 0 || g.x > 0x7fffffffU || g.y > 65535 || g.z > 65535)
    return "a grid of " + size_text(g) + " blocks";
  code = cudaErrorInvalidValue;
  if (config.dynamicSmemBytes > static_cast<unsigned>(allowed_of(kernel)))
    return std::to_string(config.dynamicSmemBytes) + " bytes of shared memory for a kernel that was allowed " +
           std::to_string(allowed_of(kernel));
  return {};
}
std::string wrong_pointer(std::initializer_list<const void*> pointers) {
  int number = 0;
  for (const void* const p : pointers) {
    ++number;
    if (p == nullptr || heap().reserved(p) || pinned_bytes_at(p) > 0) continue;
    if (pinned_bytes_at(static_cast<const std::uint8_t*>(p) - 1) > 0) continue;  // the end of a block
    return "argument " + std::to_string(number) + " of a kernel is pageable host memory";
  }
  return {};
}

}  // namespace

int current_device() { return device; }
int open_ranges() { return ranges; }

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, std::initializer_list<const void*> pointers,
                   const Body& body) {
  const std::lock_guard guard(lock());
  cudaError_t code = trouble();
  if (code == cudaSuccess) {
    std::string wrong = wrong_launch(config, kernel, code);
    if (wrong.empty()) wrong = wrong_pointer(pointers);
    if (wrong.empty())
      return enqueue(
          config.stream, [config, body] { runner().run(config, body); }, body);
    report(wrong);
  }
  body.destroy(body.arguments);
  return answer(code);
}

}  // namespace emu

using namespace emu;

cudaError_t cudaGetDeviceCount(int* count) {
  if (count == nullptr) return answer(cudaErrorInvalidValue);
  *count = 0;
  if (trouble() == cudaErrorInsufficientDriver || trouble() == cudaErrorNoDevice) return answer(trouble());
  *count = options().devices;
  return answer(trouble());
}
cudaError_t cudaSetDevice(int number) {
  const cudaError_t code = check_device(number);
  if (code == cudaSuccess) device = number;
  return code;
}
cudaError_t cudaGetDevice(int* number) {
  if (number == nullptr) return answer(cudaErrorInvalidValue);
  *number = device;
  return answer(trouble());
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* prop, int number) {
  if (prop == nullptr) return answer(cudaErrorInvalidValue);
  if (const cudaError_t code = check_device(number); code != cudaSuccess) return code;
  *prop = {};
  std::snprintf(prop->name, sizeof prop->name, "emulated device %d", number);
  prop->totalGlobalMem = options().memory;
  prop->sharedMemPerBlock = kShared;
  prop->sharedMemPerBlockOptin = kSharedMost;
  prop->sharedMemPerMultiprocessor = kSharedProcessor;
  prop->major = kMajor;
  prop->minor = kMinor;
  prop->multiProcessorCount = kProcessors;
  prop->warpSize = warpSize;
  prop->maxThreadsPerBlock = kThreads;
  prop->regsPerBlock = kRegisters;
  prop->l2CacheSize = kL2;
  prop->ECCEnabled = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attr, int number) {
  if (value == nullptr) return answer(cudaErrorInvalidValue);
  if (const cudaError_t code = check_device(number); code != cudaSuccess) return code;
  switch (attr) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = kThreads;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = kShared;
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = warpSize;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = kProcessors;
      return cudaSuccess;
    case cudaDevAttrEccEnabled:
      *value = 1;
      return cudaSuccess;
    case cudaDevAttrL2CacheSize:
      *value = kL2;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = kMajor;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = kMinor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = kSharedProcessor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = kSharedMost;
      return cudaSuccess;
  }
  return answer(cudaErrorInvalidValue);
}
cudaError_t cudaDeviceGetPCIBusId(char* pciBusId, int len, int number) {
  if (pciBusId == nullptr || len < 13) return answer(cudaErrorInvalidValue);
  if (const cudaError_t code = check_device(number); code != cudaSuccess) return code;
  std::snprintf(pciBusId, static_cast<unsigned>(len), "0000:%02X:00.0", static_cast<unsigned>(number + 1) & 0xffU);
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* driverVersion) {
  if (driverVersion == nullptr) return answer(cudaErrorInvalidValue);
  *driverVersion = options().driver;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* runtimeVersion) {
  if (runtimeVersion == nullptr) return answer(cudaErrorInvalidValue);
  *runtimeVersion = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* func, cudaFuncAttribute attr, int value) {
  const std::lock_guard guard(lock());
  if (trouble() != cudaSuccess) return answer(trouble());
  if (func == nullptr) return answer(cudaErrorInvalidDeviceFunction);
  if (attr == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
  if (attr != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 || value > kSharedMost)
    return refuse(cudaErrorInvalidValue, "a kernel cannot have " + std::to_string(value) + " bytes of shared memory");
  allowed()[func] = value;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attr, const void* func) {
  const std::lock_guard guard(lock());
  if (trouble() != cudaSuccess) return answer(trouble());
  if (attr == nullptr || func == nullptr) return answer(cudaErrorInvalidDeviceFunction);
  *attr = {};
  attr->maxThreadsPerBlock = kThreads;
  attr->numRegs = 64;
  attr->ptxVersion = attr->binaryVersion = kMajor * 10 + kMinor;
  attr->maxDynamicSharedSizeBytes = allowed_of(func);
  return cudaSuccess;
}

cudaError_t cudaProfilerStart() { return cudaSuccess; }
cudaError_t cudaProfilerStop() { return cudaSuccess; }

int nvtxRangePushA(const char*) { return ranges++; }
int nvtxRangePop() { return --ranges; }
void nvtxMarkA(const char*) {}
