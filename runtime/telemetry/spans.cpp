#include "runtime/telemetry/spans.h"

namespace emox {

void Telemetry::add(std::string_view name, double seconds, double flops, double bytes) {
  auto it = totals_.find(name);
  if (it == totals_.end()) it = totals_.emplace(std::string(name), SpanTotal{}).first;
  SpanTotal& t = it->second;
  ++t.calls;
  t.seconds += seconds;
  t.flops += flops;
  t.bytes += bytes;
}

double Telemetry::seconds(std::string_view name) const {
  const auto it = totals_.find(name);
  return it == totals_.end() ? 0.0 : it->second.seconds;
}

}  // namespace emox
