#include "runtime/core/arena.h"

#include <algorithm>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {
constexpr std::size_t kAlign = kTensorAlignment;
}

Arena Arena::measuring(Device device, DType activations) {
  Arena arena(device, 0, activations);
  arena.measuring_ = true;
  return arena;
}

Arena::Arena(Device device, std::size_t bytes, DType activations)
    : device_(device), activations_(activations), buffer_(device, bytes) {}

TensorView Arena::allocate(DType dtype, Shape shape) {
  const std::size_t bytes = (idx(shape.numel()) * size_of(dtype) + kAlign - 1) / kAlign * kAlign;
  const std::size_t begin = used_;
  require(measuring_ || begin + bytes <= buffer_.bytes(), "the arena of {} bytes is full: {} in use, {} wanted for {}",
          buffer_.bytes(), begin, bytes, shape.str());
  used_ += bytes;
  peak_ = std::max(peak_, used_);
  void* data = measuring_ || buffer_.data() == nullptr ? nullptr : static_cast<char*>(buffer_.data()) + begin;
  return {data, dtype, shape, device_};
}

GrowingTensor* Arena::growing(DType dtype, Shape shape) {
  growing_bytes_ += idx(shape.numel()) * size_of(dtype);
  growing_.push_back(std::make_unique<GrowingTensor>(device_, dtype, measuring_ ? shape.with_rows(0) : shape));
  return growing_.back().get();
}

}  // namespace emox
