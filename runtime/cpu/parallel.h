// Threads inside one op: a range cut into one contiguous piece a thread, the same cut for the same number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <limits>
#include <mutex>

#include "runtime/core/context.h"
#include "runtime/core/error.h"

namespace emox::cpu {

/// What the tasks of a parallel region threw: OpenMP ends the program when an exception leaves its region. Tasks run
/// through guard(), on whatever thread; after the region rethrow() throws the exception of the lowest task, which does
/// not depend on who was first.
class TaskErrors {
 public:
  /// Errors of the task belong to the rank that began the region.
  template <typename Task>
  void guard(std::int64_t index, const Task& task) noexcept {
    set_error_rank(rank_);
    try {
      task();
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (index >= lowest_) return;
      lowest_ = index;
      error_ = std::current_exception();
    }
  }
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  const int rank_ = error_rank();
  std::mutex mutex_;
  std::int64_t lowest_ = std::numeric_limits<std::int64_t>::max();
  std::exception_ptr error_;
};

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
  TaskErrors errors;
#pragma omp parallel for schedule(static, 1) num_threads(static_cast <int>(pieces))
  for (std::int64_t p = 0; p < pieces; ++p) errors.guard(p, [&] { body(begin(p), begin(p + 1), static_cast<int>(p)); });
  errors.rethrow();
}

/// Calls body(i) for every i in [0, n), tasks handed out as threads become free. Each task must write its own output
/// only.
template <typename Body>
void parallel_tasks(const Context& ctx, std::int64_t n, Body&& body) {
  if (ctx.threads == 1 || n <= 1) {
    for (std::int64_t i = 0; i < n; ++i) body(i);
    return;
  }
  TaskErrors errors;
#pragma omp parallel for schedule(dynamic, 1) num_threads(ctx.threads)
  for (std::int64_t i = 0; i < n; ++i) errors.guard(i, [&] { body(i); });
  errors.rethrow();
}

}  // namespace emox::cpu
