// Segment boundaries and experts' offsets as the ops read them, checked once a call.
#pragma once

#include <cstdint>
#include <string_view>

#include "runtime/core/error.h"
#include "runtime/core/tensor.h"

namespace emox::cpu {

struct Segments {
  const std::int32_t* at;  ///< [count + 1]
  std::int64_t count;
};

/// i32 [n+1] ascending from 0 to `tokens`; throws ShapeError naming the op otherwise.
inline Segments checked_segments(std::string_view op, const TensorView& segments, std::int64_t tokens) {
  const auto* at = segments.data<std::int32_t>();
  const std::int64_t n = segments.numel() - 1;
  require<ShapeError>(n >= 0 && at[0] == 0 && at[n] == tokens, "[{}] segments must run from 0 to {} tokens", op,
                      tokens);
  for (std::int64_t i = 0; i < n; ++i)
    require<ShapeError>(at[i] <= at[i + 1], "[{}] segment {} ends at {} before it starts at {}", op, i, at[i + 1],
                        at[i]);
  return {at, n};
}

/// i64 [experts + 1] ascending from 0 to `rows`: a wrong one would reach beyond the activations.
inline const std::int64_t* checked_offsets(std::string_view op, const TensorView& offsets, std::int64_t rows) {
  const auto* at = offsets.data<std::int64_t>();
  const std::int64_t experts = offsets.numel() - 1;
  require<ShapeError>(at[0] == 0 && at[experts] == rows, "[{}] offsets run from {} to {}, expected 0 to {} rows", op,
                      at[0], at[experts], rows);
  for (std::int64_t e = 0; e < experts; ++e)
    require<ShapeError>(at[e] <= at[e + 1], "[{}] rows of expert {} end at {} before they start at {}", op, e,
                        at[e + 1], at[e]);
  return at;
}

}  // namespace emox::cpu
