// Threads inside one op: a range cut into one contiguous piece a thread, the same cut for the same number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "runtime/core/context.h"

namespace emox::cpu {

/// Calls body(begin, end, thread) on disjoint pieces of [0, n). Pieces are multiples of `grain` but for the last.
template <typename Body>
void parallel_pieces(const Context& ctx, std::int64_t n, std::int64_t grain, Body&& body) {
  const std::int64_t pieces = std::clamp<std::int64_t>((n + grain - 1) / grain, 1, ctx.threads);
  const std::int64_t blocks = (n + grain - 1) / grain;
  const auto begin = [&](std::int64_t p) { return std::min(n, blocks * p / pieces * grain); };
  if (pieces == 1) {
    body(std::int64_t{0}, n, 0);
    return;
  }
#pragma omp parallel for schedule(static, 1) num_threads(static_cast <int>(pieces))
  for (std::int64_t p = 0; p < pieces; ++p) body(begin(p), begin(p + 1), static_cast<int>(p));
}

/// Calls body(i) for every i in [0, n), tasks handed out as threads become free. Each task must write its own output
/// only.
template <typename Body>
void parallel_tasks(const Context& ctx, std::int64_t n, Body&& body) {
  if (ctx.threads == 1 || n <= 1) {
    for (std::int64_t i = 0; i < n; ++i) body(i);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(ctx.threads)
  for (std::int64_t i = 0; i < n; ++i) body(i);
}

}  // namespace emox::cpu
