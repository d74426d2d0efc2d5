#include <cublasLt.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "runtime/core/accelerator.h"
#include "runtime/core/error.h"
#include "runtime/cuda/architectures.h"
#include "runtime/cuda/queue.h"

namespace emox::cuda {
namespace {

std::string version_text(int version, int major, int minor) {
  return fmt::format("{}.{}", version / major, version % major / minor);
}

class Cuda final : public Accelerator {
 public:
  int count() const override {
    int n = 0;
    return cudaGetDeviceCount(&n) == cudaSuccess ? n : 0;
  }

  std::string trouble() const override {
    int n = 0, driver = 0;
    const cudaError_t code = cudaGetDeviceCount(&n);
    if (code == cudaSuccess && n > 0) return {};
    cudaGetLastError();  // asking must not stay as an error
    cudaDriverGetVersion(&driver);
    if (driver == 0) return "no NVIDIA driver is installed here";
    if (code == cudaErrorInsufficientDriver)
      return fmt::format("the NVIDIA driver is too old: it supports CUDA {}, this emox needs {}",
                         version_text(driver, 1000, 10), version_text(CUDART_VERSION, 1000, 10));
    if (code == cudaErrorNoDevice || n == 0)
      return "the NVIDIA driver shows no device: look at nvidia-smi, and at CUDA_VISIBLE_DEVICES";
    return fmt::format("{} ({})", cudaGetErrorString(code), cudaGetErrorName(code));
  }

  DeviceProperties properties(int device) const override {
    cudaDeviceProp p{};
    const cudaError_t code = cudaGetDeviceProperties(&p, device);
    require(code == cudaSuccess, "the properties of CUDA device {} cannot be read: {}", device,
            cudaGetErrorString(code));
    DeviceProperties out;
    out.name = p.name;
    out.major = p.major, out.minor = p.minor;
    out.processors = p.multiProcessorCount;
    out.memory = p.totalGlobalMem;
    out.ecc = p.ECCEnabled != 0;
    char bus[32] = {};
    if (cudaDeviceGetPCIBusId(bus, sizeof bus, device) == cudaSuccess) out.bus = bus;
    std::size_t all = 0;
    int before = device;  // whose queue works on this thread
    cudaGetDevice(&before);
    choose(device);
    if (cudaMemGetInfo(&out.free, &all) != cudaSuccess) out.free = 0;
    choose(before);
    return out;
  }

  std::vector<std::string> compiled_for() const override { return compiled_architectures(); }

  std::vector<std::pair<std::string, std::string>> versions() const override {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    const auto blas = static_cast<int>(cublasLtGetVersion());
    return {{"driver", driver == 0 ? "none" : "CUDA " + version_text(driver, 1000, 10)},
            {"runtime", "CUDA " + version_text(runtime, 1000, 10)},
            {"cublasLt", fmt::format("{}.{}.{}", blas / 10000, blas / 100 % 100, blas % 100)}};
  }

  std::string unusable(int device) const override {
    const DeviceProperties p = properties(device);
    if (runs_on(p.major, p.minor)) return {};
    return fmt::format(
        "CUDA device {} ({}) has compute capability {}.{}, but the kernels were compiled for {}: configure with "
        "-DCMAKE_CUDA_ARCHITECTURES={}{}",
        device, p.name, p.major, p.minor, fmt::join(compiled_for(), ", "), p.major, p.minor);
  }

  void* allocate(int device, std::size_t bytes) override {
    choose(device);
    void* memory = nullptr;
    if (cudaMalloc(&memory, bytes) != cudaSuccess) {
      cudaGetLastError();
      return nullptr;
    }
    // Queues do not wait for the stream on which this runs, so it is waited for here; allocations are rare.
    if (cudaMemset(memory, 0, bytes) == cudaSuccess && cudaStreamSynchronize(nullptr) == cudaSuccess) return memory;
    cudaFree(memory);
    return nullptr;
  }
  void release(int device, void* memory) noexcept override {
    cudaSetDevice(device);
    cudaFree(memory);
  }
  void* allocate_pinned(std::size_t bytes) override {
    void* memory = nullptr;
    if (cudaHostAlloc(&memory, bytes, cudaHostAllocDefault) == cudaSuccess) return memory;
    cudaGetLastError();
    return nullptr;
  }
  void release_pinned(void* memory) noexcept override { cudaFreeHost(memory); }

  std::unique_ptr<DeviceQueue> open_queue(int device, bool urgent) override {
    return std::make_unique<Queue>(device, urgent);
  }

 private:
  static void choose(int device) {
    const cudaError_t code = cudaSetDevice(device);
    require(code == cudaSuccess, "CUDA device {} cannot be used: {}", device, cudaGetErrorString(code));
  }
};

}  // namespace

Accelerator* accelerator() {
  static Cuda cuda;
  return &cuda;
}

}  // namespace emox::cuda
