#include "model/transformer/parameter_store.h"

#include <utility>

#include "runtime/core/error.h"

namespace emox {

ParameterSlot ParameterSlot::rows(std::int64_t begin, std::int64_t end) const {
  require<ShapeError>(0 <= begin && begin <= end && end <= shape[0], "rows [{}, {}) of a parameter {}", begin, end,
                      shape.str());
  return {offset + begin * shape.tail().numel(), shape.with_rows(end - begin)};
}

ParameterSlot ParameterSlot::operator[](std::int64_t i) const {
  const ParameterSlot row = rows(i, i + 1);
  return {row.offset, shape.tail()};
}

ParameterSlot ParameterStore::reserve(Shape shape, bool decay) {
  constexpr std::int64_t kAlign = 16;  // elements: 64 bytes
  const ParameterSlot slot{size_, shape};
  size_ += (shape.numel() + kAlign - 1) / kAlign * kAlign;
  if (runs_.empty() || runs_.back().decay != decay) runs_.push_back({slot.offset, size_, decay});
  runs_.back().end = size_;
  return slot;
}

void ParameterStore::name(std::string name, ParameterSlot slot, bool matrix) {
  named_.push_back({std::move(name), slot, matrix});
}

void ParameterStore::allocate(Device device, bool training) {
  weights_ = Tensor(device, DType::F32, {size_});
  if (!training) return;
  grads_ = Tensor(device, DType::F32, {size_});
  exp_avg_ = Tensor(device, DType::F32, {size_});
  exp_avg_sq_ = Tensor(device, DType::F32, {size_});
}

std::int64_t ParameterStore::element_count() const {
  std::int64_t n = 0;
  for (const NamedParameter& p : named_) n += p.slot.shape.numel();
  return n;
}

TensorView ParameterStore::window(const Tensor& t, const ParameterSlot& s) const {
  if (t.view().null()) return {};
  return t.view().rows(s.offset, s.offset + s.shape.numel()).reshape(s.shape);
}

}  // namespace emox
