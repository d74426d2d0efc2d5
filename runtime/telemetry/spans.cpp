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

void Telemetry::start_trace(Clock::time_point zero, std::size_t max_events, std::vector<std::string> prefixes,
                            DeviceQueue* queue) {
  tracing_ = true;
  for (auto& [other, line] : timelines_) line.anchored = false;
  if (queue != nullptr) anchor(*queue, timelines_[queue]);
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

// The device's clock is the host's at a moment when the queue has nothing to do; from there its own times count.
void Telemetry::anchor(DeviceQueue& queue, Timeline& line) {
  queue.synchronize();
  line.anchor = queue.mark();
  line.anchor_time = Clock::now();
  line.anchored = true;
}

void Telemetry::add_later(std::string_view name, DeviceQueue& queue, DeviceMark from, DeviceMark to, double flops,
                          double bytes) {
  Timeline& line = timelines_[&queue];
  line.later.push_back({std::string(name), from, to, flops, bytes});
  if (tracing_ && !line.anchored) anchor(queue, line);
}

void Telemetry::resolve() {
  for (auto& [queue, line] : timelines_) resolve(*queue, line);
}

void Telemetry::resolve(DeviceQueue& queue, Timeline& line) {
  if (line.later.empty()) return;
  std::size_t done = 0;
  for (; done < line.later.size(); ++done) {
    const Later& l = line.later[done];
    const auto seconds = queue.seconds_between(l.from, l.to);
    if (!seconds) break;
    add_total(l.name, *seconds, l.flops, l.bytes);
    if (!tracing_ || !line.anchored) continue;
    const double after = l.from >= line.anchor ? *queue.seconds_between(line.anchor, l.from)
                                               : -*queue.seconds_between(l.from, line.anchor);
    const auto ticks = [](double s) {
      return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(s));
    };
    const Clock::time_point start = line.anchor_time + ticks(after);
    add_event(l.name, start, start + ticks(*seconds));
    line.anchor = l.from, line.anchor_time = start;
  }
  line.later.erase(line.later.begin(), line.later.begin() + static_cast<std::ptrdiff_t>(done));
  DeviceMark needed = line.anchor;
  if (!tracing_) needed = line.later.empty() ? queue.mark() : line.later.front().from;
  for (const Later& l : line.later) needed = std::min(needed, l.from);
  queue.forget_marks(needed);
}

const std::map<std::string, SpanTotal, std::less<>>& Telemetry::totals() {
  resolve();
  return totals_;
}

std::span<const TraceEvent> Telemetry::events() {
  resolve();
  return events_;
}

double Telemetry::seconds(std::string_view name) {
  resolve();
  const auto it = totals_.find(name);
  return it == totals_.end() ? 0.0 : it->second.seconds;
}

void Span::begin_on_device(DeviceQueue& queue) {
  queue.begin_range(name_);
  queue_ = &queue;
  if (telemetry_->watches_on_device(name_)) from_ = queue.mark();
}

void Span::end_on_device() {
  if (from_) telemetry_->add_later(name_, *queue_, *from_, queue_->mark(), flops_, bytes_);
  queue_->end_range();
}

}  // namespace emox
