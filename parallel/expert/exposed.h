// Time inside an exchange. On the CPU nothing is computed meanwhile, and it counts as exposed; on a device the span is
// the transfer's own on its queue, and what the compute queue waits is measured where it waits (transfer_queue.h).
#pragma once

#include <chrono>

#include "parallel/expert/dispatch_counters.h"
#include "runtime/core/context.h"
#include "runtime/telemetry/spans.h"

namespace emox {

class Exposed {
 public:
  Exposed(const Context& ctx, DispatchCounters& counters)
      : span_(ctx, "comm.all_to_all"), counters_(ctx.queue == nullptr ? &counters : nullptr) {}
  ~Exposed() {
    if (counters_ != nullptr)
      (*counters_)[DispatchCounters::ExposedSeconds] +=
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  Exposed(const Exposed&) = delete;
  Exposed& operator=(const Exposed&) = delete;

 private:
  const Span span_;
  DispatchCounters* const counters_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace emox
