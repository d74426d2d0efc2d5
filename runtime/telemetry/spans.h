// Spans: how long each named piece of a step took, with the FLOPs and bytes it had to do.
//
// An op opens a span with its FLOP and byte count; `bench ops` divides by the limits, the trainer sums phases. While a
// trace runs, spans are also kept one by one, with their place in time.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

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
  const std::map<std::string, SpanTotal, std::less<>>& totals() const { return totals_; }
  double seconds(std::string_view name) const;
  /// Forgets the totals; a trace goes on.
  void clear() { totals_.clear(); }

  /// From now on the spans that begin at `zero` or later, and whose name begins with one of the prefixes (none: every
  /// name), are kept as events in the order of their ends, the first `max_events` of them. Starts a new trace.
  void start_trace(Clock::time_point zero, std::size_t max_events, std::vector<std::string> prefixes = {});
  std::span<const TraceEvent> events() const { return events_; }
  /// Events for which there was no room.
  std::int64_t dropped_events() const { return dropped_; }

 private:
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
};

/// Measures from its construction to its end. Costs a branch when the context records nothing.
class Span {
 public:
  Span(const Context& ctx, std::string_view name, double flops = 0, double bytes = 0)
      : telemetry_(ctx.telemetry), name_(name), flops_(flops), bytes_(bytes) {
    if (telemetry_ != nullptr) start_ = Telemetry::Clock::now();
  }
  ~Span() {
    if (telemetry_ != nullptr) telemetry_->add(name_, start_, Telemetry::Clock::now(), flops_, bytes_);
  }
  Span(const Span&) = delete;
  Span& operator=(const Span&) = delete;

 private:
  Telemetry* telemetry_;
  std::string_view name_;
  double flops_, bytes_;
  Telemetry::Clock::time_point start_;
};

}  // namespace emox
