// Spans: how long each named piece of a step took, with the FLOPs and bytes it had to do.
//
// An op opens a span with its FLOP and byte count; `bench ops` divides by the limits, the trainer sums phases. While a
// trace runs, spans are also kept one by one, with their place in time.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/core/accelerator.h"
#include "runtime/core/context.h"

namespace emox {

struct SpanTotal {
  std::int64_t calls = 0;
  double seconds = 0;
  double flops = 0;  ///< multiplications and additions counted apart
  double bytes = 0;  ///< least traffic: each operand read or written once
};

/// One span of a trace. Integers, so that what lies inside another span does so exactly.
struct TraceEvent {
  std::string_view name;      ///< lives as long as the Telemetry
  std::int64_t start_ns = 0;  ///< since the trace's zero
  std::int64_t duration_ns = 0;
};

/// Sums spans by name. One object a rank; not shared between threads.
class Telemetry {
 public:
  using Clock = std::chrono::steady_clock;
  Telemetry() = default;
  Telemetry(const Telemetry&) = delete;
  Telemetry& operator=(const Telemetry&) = delete;

  void add(std::string_view name, Clock::time_point start, Clock::time_point end, double flops, double bytes) {
    add_total(name, std::chrono::duration<double>(end - start).count(), flops, bytes);
    if (tracing_) add_event(name, start, end);
  }
  /// A span of work that a device does later. It is counted once the device has passed its end, which the calls below
  /// look for; they wait for nothing.
  void add_later(std::string_view name, DeviceQueue& queue, DeviceMark from, DeviceMark to, double flops, double bytes);
  /// What spans took, those of a device as far as it has come.
  const std::map<std::string, SpanTotal, std::less<>>& totals();
  double seconds(std::string_view name);
  /// Forgets the totals; a trace goes on.
  void clear() { totals_.clear(); }

  /// Whether spans of single ops on a device are recorded: a mark costs about as much as a launch. Off at the start.
  void watch_device_ops(bool on) { device_ops_ = on; }
  /// Whether a span of a device is recorded: those of phases, layers and exchanges ("phase.forward") always are.
  bool watches_on_device(std::string_view name) const {
    return device_ops_ || name.find('.') != std::string_view::npos;
  }

  /// From now on the spans that begin at `zero` or later, and whose name begins with one of the prefixes (none: every
  /// name), are kept as events in the order of their ends, the first `max_events` of them. Starts a new trace.
  /// `queue`: whose device's spans are wanted; it is waited for. Other queues of that device are placed by it.
  void start_trace(Clock::time_point zero, std::size_t max_events, std::vector<std::string> prefixes = {},
                   DeviceQueue* queue = nullptr);
  std::span<const TraceEvent> events();
  /// Events for which there was no room.
  std::int64_t dropped_events() const { return dropped_; }

 private:
  /// On a device, waiting for its end.
  struct Later {
    std::string name;
    DeviceMark from, to;
    double flops, bytes;
  };
  /// What is known of one queue's time.
  struct Timeline {
    std::vector<Later> later;
    DeviceMark anchor = 0;  ///< a mark whose time is known
    Clock::time_point anchor_time;
    bool anchored = false;
  };
  void anchor(DeviceQueue& queue, Timeline& line);
  void resolve();
  void resolve(DeviceQueue& queue, Timeline& line);
  void add_total(std::string_view name, double seconds, double flops, double bytes);
  void add_event(std::string_view name, Clock::time_point start, Clock::time_point end);

  std::map<std::string, SpanTotal, std::less<>> totals_;
  bool tracing_ = false;
  Clock::time_point zero_;
  std::size_t max_events_ = 0;
  std::vector<std::string> prefixes_;
  std::set<std::string, std::less<>> names_;
  std::vector<TraceEvent> events_;
  std::int64_t dropped_ = 0;
  bool device_ops_ = false;
  std::map<DeviceQueue*, Timeline> timelines_;
};

/// Measures from its construction to its end: the host's time on the CPU, the device's on a device. Costs a branch when
/// the context records nothing.
class Span {
 public:
  Span(const Context& ctx, std::string_view name, double flops = 0, double bytes = 0)
      : telemetry_(ctx.telemetry), name_(name), flops_(flops), bytes_(bytes) {
    if (telemetry_ == nullptr) return;
    if (ctx.queue != nullptr)
      begin_on_device(*ctx.queue);
    else
      start_ = Telemetry::Clock::now();
  }
  ~Span() {
    if (telemetry_ == nullptr) return;
    if (queue_ != nullptr)
      end_on_device();
    else
      telemetry_->add(name_, start_, Telemetry::Clock::now(), flops_, bytes_);
  }
  Span(const Span&) = delete;
  Span& operator=(const Span&) = delete;

 private:
  void begin_on_device(DeviceQueue& queue);
  void end_on_device();

  Telemetry* telemetry_;
  std::string_view name_;
  double flops_, bytes_;
  Telemetry::Clock::time_point start_;
  DeviceQueue* queue_ = nullptr;
  std::optional<DeviceMark> from_;  ///< none: not recorded, only named to the profiler
};

}  // namespace emox
