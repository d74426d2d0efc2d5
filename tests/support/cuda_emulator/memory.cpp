// The run-time library's memory.
#include <cuda_runtime.h>

#include <cstdlib>
#include <cstring>
#include <map>

#include "tests/support/cuda_emulator/faults.h"
#include "tests/support/cuda_emulator/heap.h"
#include "tests/support/cuda_emulator/state.h"
#include "tests/support/cuda_emulator/streams.h"

namespace emu {
namespace {

std::map<std::uintptr_t, std::size_t>& pinned() {
  static auto& all = *new std::map<std::uintptr_t, std::size_t>;
  return all;
}

std::string device_side(const void* p, std::size_t bytes, const char* what) {
  if (heap().bytes_at(p) >= bytes) return {};
  if (!heap().reserved(p)) return std::string(what) + " is not device memory";
  return std::string(what) + ", " + std::to_string(bytes) + " bytes, reaches out of its block: it is " +
         heap().describe(p);
}
std::string host_side(const void* p, std::size_t bytes, const char* what, bool must_be_pinned) {
  if (heap().reserved(p)) return std::string(what) + " is device memory";
  const std::size_t there = pinned_bytes_at(p);
  if (there == 0 && !must_be_pinned) return {};
  if (there == 0) return std::string(what) + " is pageable host memory, which an asynchronous copy waits for";
  return there >= bytes ? "" : std::string(what) + " reaches out of its block of pinned memory";
}

cudaError_t copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream, bool waits) {
  if (trouble() != cudaSuccess) return answer(trouble());
  if (bytes == 0) return cudaSuccess;
  if (to == nullptr || from == nullptr) return refuse(cudaErrorInvalidValue, "a copy from or to null");
  const bool to_device = kind == cudaMemcpyDefault ? heap().reserved(to)
                                                   : kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDefault
                               ? heap().reserved(from)
                               : kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  std::string wrong =
      to_device ? device_side(to, bytes, "a copy's destination") : host_side(to, bytes, "a copy's destination", !waits);
  if (wrong.empty())
    wrong =
        from_device ? device_side(from, bytes, "a copy's source") : host_side(from, bytes, "a copy's source", !waits);
  const auto a = reinterpret_cast<std::uintptr_t>(to), b = reinterpret_cast<std::uintptr_t>(from);
  if (wrong.empty() && a < b + bytes && b < a + bytes) wrong = "a copy's source and destination overlap";
  if (!wrong.empty()) return refuse(cudaErrorInvalidValue, wrong);
  return enqueue(stream, [=] { std::memcpy(to, from, bytes); });
}

cudaError_t set(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  if (trouble() != cudaSuccess) return answer(trouble());
  if (bytes == 0) return cudaSuccess;
  const std::string wrong = pinned_bytes_at(to) >= bytes ? "" : device_side(to, bytes, "what is to be set");
  if (!wrong.empty()) return refuse(cudaErrorInvalidValue, wrong);
  return enqueue(stream, [=] { std::memset(to, value, bytes); });
}

}  // namespace

std::size_t device_bytes_at(const void* p) {
  const std::lock_guard guard(lock());
  return heap().bytes_at(p);
}
std::size_t pinned_bytes_at(const void* p) {
  const std::lock_guard guard(lock());
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  auto at = pinned().upper_bound(address);
  if (at == pinned().begin()) return 0;
  --at;
  return address < at->first + at->second ? at->first + at->second - address : 0;
}
std::size_t allocations() {
  const std::lock_guard guard(lock());
  return heap().live();
}

}  // namespace emu

using namespace emu;

cudaError_t cudaMalloc(void** devPtr, std::size_t size) {
  const std::lock_guard guard(lock());
  if (trouble() != cudaSuccess) return answer(trouble());
  if (devPtr == nullptr) return answer(cudaErrorInvalidValue);
  *devPtr = nullptr;
  if (size == 0) return cudaSuccess;
  watch_faults();
  *devPtr = heap().allocate(current_device(), size);
  return *devPtr == nullptr ? answer(cudaErrorMemoryAllocation) : cudaSuccess;
}
// Waits for all work of the block's device, as the library does.
cudaError_t cudaFree(void* devPtr) {
  const std::lock_guard guard(lock());
  if (trouble() != cudaSuccess) return answer(trouble());
  if (devPtr == nullptr) return cudaSuccess;
  const DeviceHeap::Block* const block = heap().find(devPtr);
  if (const cudaError_t code = drain_device(block == nullptr ? current_device() : block->device); code != cudaSuccess)
    return code;
  if (heap().release(devPtr)) return cudaSuccess;
  return refuse(cudaErrorInvalidValue, "cudaFree of " + heap().describe(devPtr));
}

cudaError_t cudaHostAlloc(void** pHost, std::size_t size, unsigned flags) {
  const std::lock_guard guard(lock());
  if (trouble() != cudaSuccess) return answer(trouble());
  if (pHost == nullptr || flags > 7) return answer(cudaErrorInvalidValue);
  *pHost = nullptr;
  if (size == 0) return cudaSuccess;
  const std::size_t rounded = (size + 255) / 256 * 256;
  *pHost = rounded < size ? nullptr : std::aligned_alloc(256, rounded);
  if (*pHost == nullptr) return answer(cudaErrorMemoryAllocation);
  std::memset(*pHost, 0xff, rounded);
  pinned()[reinterpret_cast<std::uintptr_t>(*pHost)] = size;
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** ptr, std::size_t size) { return cudaHostAlloc(ptr, size, cudaHostAllocDefault); }
cudaError_t cudaFreeHost(void* ptr) {
  const std::lock_guard guard(lock());
  if (ptr == nullptr) return cudaSuccess;
  if (trouble() == cudaSuccess) drain_device(current_device());
  if (pinned().erase(reinterpret_cast<std::uintptr_t>(ptr)) == 0)
    return refuse(cudaErrorInvalidValue, "cudaFreeHost of what is no pinned block");
  std::free(ptr);
  return answer(trouble());
}
cudaError_t cudaHostGetDevicePointer(void** pDevice, void* pHost, unsigned flags) {
  if (pDevice == nullptr || flags != 0 || pinned_bytes_at(pHost) == 0) return answer(cudaErrorInvalidValue);
  *pDevice = pHost;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  const std::lock_guard guard(lock());
  if (trouble() != cudaSuccess) return answer(trouble());
  if (free == nullptr || total == nullptr) return answer(cudaErrorInvalidValue);
  *total = options().memory;
  *free = *total - heap().used(current_device());
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* dst, const void* src, std::size_t count, cudaMemcpyKind kind, cudaStream_t stream) {
  const std::lock_guard guard(lock());
  return copy(dst, src, count, kind, stream, false);
}
cudaError_t cudaMemcpy(void* dst, const void* src, std::size_t count, cudaMemcpyKind kind) {
  const std::lock_guard guard(lock());
  const cudaError_t code = copy(dst, src, count, kind, nullptr, true);
  return code == cudaSuccess ? cudaStreamSynchronize(nullptr) : code;
}
cudaError_t cudaMemsetAsync(void* devPtr, int value, std::size_t count, cudaStream_t stream) {
  const std::lock_guard guard(lock());
  return set(devPtr, value, count, stream);
}
// The host does not wait: only work of the default stream, and of streams that block, comes after.
cudaError_t cudaMemset(void* devPtr, int value, std::size_t count) {
  const std::lock_guard guard(lock());
  return set(devPtr, value, count, nullptr);
}
