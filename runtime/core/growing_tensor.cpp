#include "runtime/core/growing_tensor.h"

#include <algorithm>

#include "runtime/core/error.h"

namespace emox {

GrowingTensor::GrowingTensor(Device device, DType dtype, Shape shape)
    : device_(device), dtype_(dtype), shape_(shape), memory_(device, dtype, shape) {}

TensorView GrowingTensor::rows(std::int64_t n) const { return rows(0, n); }

TensorView GrowingTensor::rows(std::int64_t begin, std::int64_t end) const {
  require<ShapeError>(0 <= begin && begin <= end && end <= capacity(), "rows [{}, {}) of {}", begin, end, capacity());
  return memory_.view().rows(begin, end);
}

std::size_t GrowingTensor::ensure(std::int64_t rows) {
  if (rows <= capacity()) return 0;
  const std::size_t before = bytes();
  shape_ = shape_.with_rows(std::max(rows, capacity() + capacity() / 4));
  memory_ = Tensor();  // first, so that old and new memory are never both held
  memory_ = Tensor(device_, dtype_, shape_);
  return bytes() - before;
}

}  // namespace emox
