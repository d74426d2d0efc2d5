// Indices that an op made and another one reads: checked before anything is read through them (ops/fault.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "runtime/core/tensor.h"
#include "runtime/ops/fault.h"

namespace emox::cpu {

/// Whether all of them, i32, lie in [low, end). The first that does not is reported; the op must compute nothing then.
inline bool indices_fit(Context& ctx, ops::Op op, int operand, const TensorView& index, std::int64_t low,
                        std::int64_t end) {
  const auto* at = index.data<std::int32_t>();
  const std::int64_t n = index.numel();
  std::int32_t lowest = std::numeric_limits<std::int32_t>::max(), highest = std::numeric_limits<std::int32_t>::min();
#pragma omp simd reduction(min : lowest) reduction(max : highest)
  for (std::int64_t i = 0; i < n; ++i) {
    lowest = std::min(lowest, at[i]);
    highest = std::max(highest, at[i]);
  }
  if (n == 0 || (lowest >= low && highest < end)) return true;
  const auto* bad = std::find_if(at, at + n, [&](std::int32_t i) { return i < low || i >= end; });
  const ops::Fault fault{op, operand, bad - at};
  ops::report(ctx, fault, fmt::format("{}: it is {}, expected {} to {}", ops::text_of(fault), *bad, low, end - 1));
  return false;
}

}  // namespace emox::cpu
