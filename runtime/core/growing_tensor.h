// A tensor whose number of rows is known only when it is about to be filled: what arrives at a rank depends on where
// the router sends tokens (design 4.2: the one exception from "a step allocates nothing").
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/core/idx.h"
#include "runtime/core/tensor.h"

namespace emox {

class GrowingTensor {
 public:
  /// Memory for shape[0] rows at the start.
  GrowingTensor(Device device, DType dtype, Shape shape);

  /// The first n rows: [n, row...]. ShapeError beyond the capacity.
  TensorView rows(std::int64_t n) const;
  /// Rows [begin, end).
  TensorView rows(std::int64_t begin, std::int64_t end) const;
  /// Makes room for at least `rows` rows, a quarter more than before when it must grow; contents are lost then. Returns
  /// the bytes by which it grew.
  std::size_t ensure(std::int64_t rows);

  std::int64_t capacity() const { return shape_[0]; }
  std::size_t bytes() const { return idx(shape_.numel()) * size_of(dtype_); }

 private:
  Device device_;
  DType dtype_;
  Shape shape_;
  Tensor memory_;
};

}  // namespace emox
