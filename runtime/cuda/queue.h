// A stream with what the CUDA bodies need beside it. Context::queue points to one.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "runtime/core/accelerator.h"
#include "runtime/core/context.h"
#include "runtime/ops/op_list.h"

namespace emox::cuda {

class MatmulPlans;  // blas.h

class Queue final : public DeviceQueue {
 public:
  explicit Queue(int device, bool urgent = false);
  ~Queue() override;
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  Device device() const override { return {DeviceType::Cuda, device_}; }
  void synchronize() override;
  QueueCounters counters() const override { return counters_; }
  DeviceMark mark() override;
  std::optional<double> seconds_between(DeviceMark from, DeviceMark to) override;
  void forget_marks(DeviceMark before) override;
  void profile(bool on) override;
  void begin_range(std::string_view name) override;
  void end_range() override;
  void follow(DeviceQueue& other) override;
  void follow(const DeviceEvent& event) override;
  std::shared_ptr<DeviceEvent> record() override;
  void wait_for(const DeviceEvent& event, const std::function<void()>& meanwhile) override;
  void copy_to_pinned(void* pinned, const void* device, std::size_t bytes) override;
  void copy_from_pinned(void* device, const void* pinned, std::size_t bytes) override;
  void* native() const override { return stream_; }

  cudaStream_t handle() const { return stream_; }
  int processors() const { return processors_; }
  bool uses_wgmma() const { return wgmma_; }  ///< hopper.h
  void use_wgmma(bool on) { wgmma_ = on; }

  /// Scratch on the device for the op at hand, aligned to 256 bytes, its content undefined: the next op on this queue
  /// uses the same memory. An op asks once, for all that it needs. Grows (and waits for the device then) when it must.
  void* scratch(std::size_t bytes);
  /// Host memory -> device, in order with the queue's work; the host side is free when this returns, and nothing waits
  /// unless the staging ring is full.
  void upload(void* device, const void* host, std::size_t bytes);
  /// Device -> host; waits.
  void download(void* host, const void* device, std::size_t bytes);

  /// Where bodies report a wrong index: the context's word, or this queue's own when it has none, which the next
  /// download or synchronize() then throws.
  double* fault_word(const Context& ctx);

  /// Every launch goes through here first: counted, and its op remembered for messages.
  void count_launch(ops::Op op);
  /// A product that the library has no algorithm for; no shape of a large model should be one.
  void count_fallback() { ++counters_.fallbacks; }
  /// Throws Error with the op's name unless the code is cudaSuccess.
  void check(cudaError_t code, const char* what);

  cublasLtHandle_t blas();
  MatmulPlans& plans() { return *plans_; }

 private:
  void wait();
  void throw_own_fault();
  int device_;
  int processors_ = 0;
  bool wgmma_ = false;
  cudaStream_t stream_ = nullptr;
  QueueCounters counters_;
  void* scratch_ = nullptr;
  std::size_t scratch_bytes_ = 0;
  // The staging ring: halves, each with the event after its last copy.
  unsigned char* ring_ = nullptr;
  std::size_t ring_used_ = 0;
  int ring_half_ = 0;
  std::array<cudaEvent_t, 2> ring_done_{};
  double* own_fault_ = nullptr;
  bool own_fault_used_ = false;  ///< since the last wait
  std::array<ops::Op, 8> recent_{};
  std::int64_t recent_count_ = 0;
  std::deque<cudaEvent_t> marks_;  ///< from first_mark_ on
  std::vector<cudaEvent_t> spare_events_;
  cudaEvent_t followed_ = nullptr;  ///< what others wait for
  DeviceMark first_mark_ = 0;
  bool profiling_ = false;
  cublasLtHandle_t blas_ = nullptr;
  std::unique_ptr<MatmulPlans> plans_;
};

inline Queue& queue_of(const Context& ctx) { return *static_cast<Queue*>(ctx.queue); }

}  // namespace emox::cuda
