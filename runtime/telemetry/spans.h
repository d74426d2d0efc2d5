// Spans: how long each named piece of a step took, with the FLOPs and bytes it had to do.
//
// An op opens a span with its FLOP and byte count; `bench ops` divides by the limits, the trainer sums phases.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "runtime/core/context.h"

namespace emox {

struct SpanTotal {
  std::int64_t calls = 0;
  double seconds = 0;
  double flops = 0;  ///< multiplications and additions counted apart
  double bytes = 0;  ///< least traffic: each operand read or written once
};

/// Sums spans by name. One object a rank; not shared between threads.
class Telemetry {
 public:
  using Clock = std::chrono::steady_clock;
  void add(std::string_view name, double seconds, double flops, double bytes);
  const std::map<std::string, SpanTotal, std::less<>>& totals() const { return totals_; }
  double seconds(std::string_view name) const;
  void clear() { totals_.clear(); }

 private:
  std::map<std::string, SpanTotal, std::less<>> totals_;
};

/// Measures from its construction to its end. Costs a branch when the context records nothing.
class Span {
 public:
  Span(const Context& ctx, std::string_view name, double flops = 0, double bytes = 0)
      : telemetry_(ctx.telemetry), name_(name), flops_(flops), bytes_(bytes) {
    if (telemetry_ != nullptr) start_ = Telemetry::Clock::now();
  }
  ~Span() {
    if (telemetry_ == nullptr) return;
    telemetry_->add(name_, std::chrono::duration<double>(Telemetry::Clock::now() - start_).count(), flops_, bytes_);
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
