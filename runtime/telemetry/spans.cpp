#include "runtime/telemetry/spans.h"

#include <algorithm>

namespace emox {

void Telemetry::add_total(std::string_view name, double seconds, double flops, double bytes) {
  auto it = totals_.find(name);
  if (it == totals_.end()) it = totals_.emplace(std::string(name), SpanTotal{}).first;
  SpanTotal& t = it->second;
  ++t.calls;
  t.seconds += seconds;
  t.flops += flops;
  t.bytes += bytes;
}

void Telemetry::start_trace(Clock::time_point zero, std::size_t max_events, std::vector<std::string> prefixes) {
  tracing_ = true;
  zero_ = zero;
  max_events_ = max_events;
  prefixes_ = std::move(prefixes);
  dropped_ = 0;
  events_.clear();
  events_.reserve(max_events);  // memory that is not written takes no room; growing would show in the trace
}

void Telemetry::add_event(std::string_view name, Clock::time_point start, Clock::time_point end) {
  const bool wanted = prefixes_.empty() || std::any_of(prefixes_.begin(), prefixes_.end(),
                                                       [&](const std::string& p) { return name.starts_with(p); });
  if (!wanted || start < zero_) return;
  if (events_.size() == max_events_) {
    ++dropped_;
    return;
  }
  auto known = names_.find(name);
  if (known == names_.end()) known = names_.emplace(name).first;
  using std::chrono::nanoseconds;
  const auto from = std::chrono::duration_cast<nanoseconds>(start - zero_);
  const auto until = std::chrono::duration_cast<nanoseconds>(end - zero_);
  events_.push_back({*known, from.count(), (until - from).count()});
}

double Telemetry::seconds(std::string_view name) const {
  const auto it = totals_.find(name);
  return it == totals_.end() ? 0.0 : it->second.seconds;
}

}  // namespace emox
