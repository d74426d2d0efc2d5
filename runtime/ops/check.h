// Argument checks shared by the op entries: every message names the op, the operand, and both shapes.
#pragma once

#include <string_view>

#include "runtime/core/error.h"
#include "runtime/core/tensor.h"

namespace emox::ops {

inline void expect(std::string_view op, std::string_view operand, const TensorView& x, DType dtype,
                   const Shape& shape) {
  require<ShapeError>(x.dtype() == dtype && x.shape() == shape, "[{}] {} is {} {}, expected {} {}", op, operand,
                      name_of(x.dtype()), x.shape().str(), name_of(dtype), shape.str());
}

inline void expect_rank(std::string_view op, std::string_view operand, const TensorView& x, DType dtype, int rank) {
  require<ShapeError>(x.dtype() == dtype && x.rank() == rank, "[{}] {} is {} {}, expected {} with {} extents", op,
                      operand, name_of(x.dtype()), x.shape().str(), name_of(dtype), rank);
}

/// Null, or as expect().
inline void expect_optional(std::string_view op, std::string_view operand, const TensorView& x, DType dtype,
                            const Shape& shape) {
  // An operand of zero elements may be null and still present; both mean that nothing is read.
  if (!x.null()) expect(op, operand, x, dtype, shape);
}

}  // namespace emox::ops
