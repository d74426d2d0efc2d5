// The devices of a second backend as the rest of emox sees them: memory, properties, and queues of work. Ops are in
// ops/bodies.h. runtime/cuda implements this; runtime/no_cuda has none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/core/context.h"
#include "runtime/core/device.h"

namespace emox {

struct DeviceProperties {
  std::string name;
  int major = 0, minor = 0;  ///< compute capability
  int processors = 0;        ///< streaming multiprocessors
  std::size_t memory = 0;    ///< bytes in all
  std::size_t free = 0;      ///< bytes that are free now
  std::string bus;           ///< PCI address
  bool ecc = false;          ///< memory corrects errors
};

/// What a queue has done since it was made.
struct QueueCounters {
  std::int64_t waits = 0;      ///< times that the host waited for the device
  std::int64_t launches = 0;   ///< kernels and library products
  std::int64_t uploads = 0;    ///< copies from the host
  std::int64_t fallbacks = 0;  ///< products that the library had no algorithm for: computed by plain kernels, slowly
  std::size_t workspace = 0;   ///< bytes of scratch that ops share
};

/// A place in a queue's time, for spans: resolved once the device has passed it.
using DeviceMark = std::int64_t;

/// A place in a queue's time that any thread may ask for.
class DeviceEvent {
 public:
  virtual ~DeviceEvent() = default;
  /// Whether the device has come so far; true when it failed, too.
  virtual bool passed() const = 0;
};

/// An ordered stream of work on one device with what ops need beside it (scratch, staging memory, library handles).
/// Used by one thread.
class DeviceQueue {
 public:
  virtual ~DeviceQueue() = default;
  virtual Device device() const = 0;
  /// Waits until all work is done. Error, naming the ops since the last wait, when the device failed.
  virtual void synchronize() = 0;
  virtual QueueCounters counters() const = 0;
  /// Marks now; later marks are greater.
  virtual DeviceMark mark() = 0;
  /// From one mark to a later one; nothing when the device has not passed that one yet.
  virtual std::optional<double> seconds_between(DeviceMark from, DeviceMark to) = 0;
  /// Marks before this one will not be asked for again.
  virtual void forget_marks(DeviceMark before) = 0;

  /// What this queue is given from now on begins after what `other`, of the same device, has been given so far. The
  /// host does not wait.
  virtual void follow(DeviceQueue& other) = 0;
  /// The same after an event of another queue of this device.
  virtual void follow(const DeviceEvent& event) = 0;
  /// The end of what it has been given so far.
  virtual std::shared_ptr<DeviceEvent> record() = 0;
  /// The host waits, which counts as a wait; Error when the device failed. `meanwhile` is called again and again; what
  /// it throws ends the wait.
  virtual void wait_for(const DeviceEvent& event, const std::function<void()>& meanwhile = {}) = 0;
  /// Between the device and memory of Accelerator::allocate_pinned, in order with the queue's work; the host does not
  /// wait, so its side must stay as it is until then.
  virtual void copy_to_pinned(void* pinned, const void* device, std::size_t bytes) = 0;
  virtual void copy_from_pinned(void* device, const void* pinned, std::size_t bytes) = 0;
  /// The vendor's handle: a cudaStream_t.
  virtual void* native() const = 0;

  /// Tells the vendor's profiler to watch, and names spans to it from then on.
  virtual void profile(bool on) = 0;
  virtual void begin_range(std::string_view name) = 0;
  virtual void end_range() = 0;
};

class Accelerator {
 public:
  virtual ~Accelerator() = default;
  /// Devices that this process may use; 0 where there is no driver or none is visible.
  virtual int count() const = 0;
  /// Empty where devices can be used; else why not and what to do (no driver, too old a driver, no device, ...).
  virtual std::string trouble() const = 0;
  virtual DeviceProperties properties(int device) const = 0;
  /// Architectures the kernels were compiled for, "sm_90" ..., and the library versions, for reports.
  virtual std::vector<std::string> compiled_for() const = 0;
  virtual std::vector<std::pair<std::string, std::string>> versions() const = 0;
  /// Why this device cannot run the kernels (its architecture was not compiled), or empty.
  virtual std::string unusable(int device) const = 0;

  /// Zeroed memory, aligned to 256 bytes; null when the device has not that much left.
  virtual void* allocate(int device, std::size_t bytes) = 0;
  virtual void release(int device, void* memory) noexcept = 0;
  /// Host memory that a device copies from and to at full rate; null when there is none.
  virtual void* allocate_pinned(std::size_t bytes) = 0;
  virtual void release_pinned(void* memory) noexcept = 0;
  /// `urgent`: its kernels go before those of other queues, where the device can choose: for transfers that others wait
  /// for.
  virtual std::unique_ptr<DeviceQueue> open_queue(int device, bool urgent = false) = 0;
};

/// Waits until the context's device has done its work; on the CPU it has.
inline void synchronize(const Context& ctx) {
  if (ctx.queue != nullptr) ctx.queue->synchronize();
}

namespace cuda {
/// Null: this emox was built without CUDA.
Accelerator* accelerator();
}  // namespace cuda

}  // namespace emox
