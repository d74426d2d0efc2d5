#include "runtime/cuda/queue.h"

#include <cuda_profiler_api.h>
#include <nvtx3/nvToolsExt.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <thread>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/core/out_of_memory.h"
#include "runtime/cuda/architectures.h"
#include "runtime/cuda/blas.h"
#include "runtime/cuda/hopper.h"
#include "runtime/ops/fault.h"

namespace emox::cuda {
namespace {

constexpr std::size_t kAlign = 256;
constexpr std::size_t kRingHalf = std::size_t{16} << 20;
constexpr std::size_t kFirstScratch = std::size_t{4} << 20;

class Event final : public DeviceEvent {
 public:
  Event() = default;
  ~Event() override { cudaEventDestroy(event); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  bool passed() const override { return code() != cudaErrorNotReady; }
  cudaError_t code() const {
    const cudaError_t code = cudaEventQuery(event);
    if (code == cudaErrorNotReady) cudaGetLastError();  // an answer
    return code;
  }
  cudaEvent_t event = nullptr;
};

}  // namespace

Queue::Queue(int device, bool urgent) : device_(device), plans_(std::make_unique<MatmulPlans>()) {
  check(cudaSetDevice(device), "choosing the device");
  check(cudaDeviceGetAttribute(&processors_, cudaDevAttrMultiProcessorCount, device), "reading its properties");
  int major = 0, minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "reading its properties");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "reading its properties");
  wgmma_ = major == 9 && minor == 0 && compiled_for("90a");
  int least = 0, greatest = 0;
  check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "reading its properties");
  check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, urgent ? greatest : least), "making a stream");
  check(cudaEventCreateWithFlags(&followed_, cudaEventDisableTiming), "making an event");
  for (cudaEvent_t& e : ring_done_) check(cudaEventCreateWithFlags(&e, cudaEventDisableTiming), "making an event");
  check(cudaHostAlloc(reinterpret_cast<void**>(&ring_), 2 * kRingHalf + kAlign, cudaHostAllocDefault),
        "taking host memory");
  check(cudaMalloc(reinterpret_cast<void**>(&own_fault_), kAlign), "taking device memory");
  check(cudaMemsetAsync(own_fault_, 0, kAlign, stream_), "clearing it");
}

Queue::~Queue() {
  // What failed before was said there; nothing can be said here.
  cudaSetDevice(device_);
  cudaStreamSynchronize(stream_);
  if (blas_ != nullptr) cublasLtDestroy(blas_);
  for (cudaEvent_t e : ring_done_) cudaEventDestroy(e);
  cudaEventDestroy(followed_);
  for (cudaEvent_t e : marks_) cudaEventDestroy(e);
  for (cudaEvent_t e : spare_events_) cudaEventDestroy(e);
  cudaFree(scratch_);
  cudaFree(own_fault_);
  cudaFreeHost(ring_);
  cudaStreamDestroy(stream_);
}

void Queue::synchronize() {
  wait();
  throw_own_fault();
}

void* Queue::scratch(std::size_t bytes) {
  if (bytes <= scratch_bytes_) return scratch_;
  // The old block may be in use by what is enqueued.
  if (scratch_ != nullptr) wait();
  check(cudaFree(scratch_), "giving scratch memory back");
  scratch_ = nullptr;
  scratch_bytes_ = 0;
  const std::size_t wanted = std::max(kFirstScratch, (bytes + bytes / 4 + kAlign - 1) / kAlign * kAlign);
  if (const cudaError_t code = cudaMalloc(&scratch_, wanted); code != cudaSuccess) {
    cudaGetLastError();
    scratch_ = nullptr;
    fail<OutOfMemoryError>("out of memory on CUDA device {}: an op needs {:.1f} MiB of scratch memory: {}", device_,
                           static_cast<double>(wanted) / 1048576.0, cudaGetErrorString(code));
  }
  scratch_bytes_ = counters_.workspace = wanted;
  return scratch_;
}

// Copies go through the ring half by half: the host may fill a half again when the copies out of it are done.
void Queue::upload(void* device, const void* host, std::size_t bytes) {
  auto* to = static_cast<unsigned char*>(device);
  const auto* from = static_cast<const unsigned char*>(host);
  while (bytes > 0) {
    if (ring_used_ == kRingHalf) {
      check(cudaEventRecord(ring_done_[idx(ring_half_)], stream_), "recording an event");
      ring_half_ ^= 1;
      ring_used_ = 0;
      if (cudaEventQuery(ring_done_[idx(ring_half_)]) != cudaSuccess) {
        cudaGetLastError();  // "not ready" is an answer
        ++counters_.waits;
        check(cudaEventSynchronize(ring_done_[idx(ring_half_)]), "waiting for a copy");
      }
    }
    const std::size_t part = std::min(bytes, kRingHalf - ring_used_);
    unsigned char* const staged = ring_ + idx(ring_half_) * kRingHalf + ring_used_;
    std::memcpy(staged, from, part);
    check(cudaMemcpyAsync(to, staged, part, cudaMemcpyHostToDevice, stream_), "copying to the device");
    ++counters_.uploads;
    ring_used_ = std::min(kRingHalf, (ring_used_ + part + kAlign - 1) / kAlign * kAlign);
    to += part, from += part, bytes -= part;
  }
}

// One wait. The ring is free for it: what was staged there is on its way before this copy, on the same stream.
void Queue::download(void* host, const void* device, std::size_t bytes) {
  const auto* from = static_cast<const unsigned char*>(device);
  auto* to = static_cast<unsigned char*>(host);
  while (bytes > 0) {
    const std::size_t part = std::min(bytes, 2 * kRingHalf);
    check(cudaMemcpyAsync(ring_, from, part, cudaMemcpyDeviceToHost, stream_), "copying from the device");
    wait();
    std::memcpy(to, ring_, part);
    to += part, from += part, bytes -= part;
  }
  throw_own_fault();
}

double* Queue::fault_word(const Context& ctx) {
  if (!ctx.fault.null()) return ctx.fault.data<double>();
  own_fault_used_ = true;
  return own_fault_;
}

// Everything that was enqueued is done then, so the ring is empty.
void Queue::wait() {
  ++counters_.waits;
  if (own_fault_used_)
    check(cudaMemcpyAsync(ring_ + 2 * kRingHalf, own_fault_, sizeof(double), cudaMemcpyDeviceToHost, stream_),
          "reading a report");
  check(cudaStreamSynchronize(stream_), "waiting for the device");
  ring_used_ = 0;
}

void Queue::throw_own_fault() {
  if (!own_fault_used_) return;
  double word;
  std::memcpy(&word, ring_ + 2 * kRingHalf, sizeof word);
  own_fault_used_ = false;
  const auto fault = ops::fault_of(word);
  if (!fault) return;
  check(cudaMemsetAsync(own_fault_, 0, kAlign, stream_), "clearing a report");
  fail<ShapeError>("{}", ops::text_of(*fault));
}

void Queue::count_launch(ops::Op op) {
  ++counters_.launches;
  recent_[idx(recent_count_++ % static_cast<std::int64_t>(recent_.size()))] = op;
}

void Queue::check(cudaError_t code, const char* what) {
  if (code == cudaSuccess) [[likely]]
    return;
  std::string ops;
  const auto kept = static_cast<std::int64_t>(recent_.size());
  for (std::int64_t i = std::max<std::int64_t>(0, recent_count_ - kept); i < recent_count_; ++i)
    ops.append(ops.empty() ? "" : ", ").append(ops::name_of(recent_[idx(i % kept)]));
  fail(
      "CUDA device {}: {} failed: {} ({}). The last ops that it was given: {}. With CUDA_LAUNCH_BLOCKING=1 the one "
      "that failed is the last",
      device_, what, cudaGetErrorString(code), cudaGetErrorName(code), ops.empty() ? "none" : ops);
}

bool uses_wgmma(const DeviceQueue& queue) { return static_cast<const Queue&>(queue).uses_wgmma(); }
void use_wgmma(DeviceQueue& queue, bool on) { static_cast<Queue&>(queue).use_wgmma(on); }

cublasLtHandle_t Queue::blas() {
  if (blas_ == nullptr) {
    const cublasStatus_t status = cublasLtCreate(&blas_);
    require(status == CUBLAS_STATUS_SUCCESS, "CUDA device {}: cuBLASLt cannot be used: {}", device_,
            cublasLtGetStatusString(status));
  }
  return blas_;
}

DeviceMark Queue::mark() {
  if (spare_events_.empty()) {
    cudaEvent_t e;
    check(cudaEventCreate(&e), "making an event");
    spare_events_.push_back(e);
  }
  marks_.push_back(spare_events_.back());
  spare_events_.pop_back();
  check(cudaEventRecord(marks_.back(), stream_), "recording an event");
  return first_mark_ + static_cast<DeviceMark>(marks_.size()) - 1;
}

std::optional<double> Queue::seconds_between(DeviceMark from, DeviceMark to) {
  float ms = 0;
  const cudaEvent_t begin = marks_[idx(from - first_mark_)], end = marks_[idx(to - first_mark_)];
  const cudaError_t code = cudaEventElapsedTime(&ms, begin, end);
  if (code == cudaErrorNotReady) {
    cudaGetLastError();
    return std::nullopt;
  }
  check(code, "reading a time");
  return static_cast<double>(ms) / 1000.0;
}

void Queue::forget_marks(DeviceMark before) {
  for (; first_mark_ < before && !marks_.empty(); ++first_mark_) {
    spare_events_.push_back(marks_.front());
    marks_.pop_front();
  }
}

void Queue::follow(DeviceQueue& other) {
  auto& before = static_cast<Queue&>(other);
  if (&before == this) return;
  check(cudaEventRecord(before.followed_, before.stream_), "recording an event");
  check(cudaStreamWaitEvent(stream_, before.followed_, 0), "waiting for another queue");
}

void Queue::follow(const DeviceEvent& event) {
  check(cudaStreamWaitEvent(stream_, static_cast<const Event&>(event).event, 0), "waiting for another queue");
}

std::shared_ptr<DeviceEvent> Queue::record() {
  auto e = std::make_shared<Event>();
  check(cudaEventCreateWithFlags(&e->event, cudaEventDisableTiming), "making an event");
  check(cudaEventRecord(e->event, stream_), "recording an event");
  return e;
}

// Looked for rather than waited for: what comes is a matter of microseconds, and the thread's sleep one of many more.
void Queue::wait_for(const DeviceEvent& event, const std::function<void()>& meanwhile) {
  const auto& e = static_cast<const Event&>(event);
  ++counters_.waits;
  cudaError_t code = e.code();
  for (; code == cudaErrorNotReady; code = e.code()) {
    if (meanwhile) meanwhile();
    std::this_thread::yield();
  }
  check(code, "waiting for the device");
}

void Queue::copy_to_pinned(void* pinned, const void* device, std::size_t bytes) {
  if (bytes > 0)
    check(cudaMemcpyAsync(pinned, device, bytes, cudaMemcpyDeviceToHost, stream_), "copying from the device");
}
void Queue::copy_from_pinned(void* device, const void* pinned, std::size_t bytes) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(device, pinned, bytes, cudaMemcpyHostToDevice, stream_), "copying to the device");
  ++counters_.uploads;
}

void Queue::profile(bool on) {
  if (on == profiling_) return;
  profiling_ = on;
  check(on ? cudaProfilerStart() : cudaProfilerStop(), "talking to the profiler");
}

void Queue::begin_range(std::string_view name) {
  if (profiling_) nvtxRangePushA(std::string(name).c_str());
}

void Queue::end_range() {
  if (profiling_) nvtxRangePop();
}

}  // namespace emox::cuda
