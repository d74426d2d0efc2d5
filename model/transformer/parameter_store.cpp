#include "model/transformer/parameter_store.h"

#include <utility>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {

ParameterSlot ParameterSlot::rows(std::int64_t begin, std::int64_t end) const {
  require<ShapeError>(0 <= begin && begin <= end && end <= shape[0], "rows [{}, {}) of a parameter {}", begin, end,
                      shape.str());
  return {offset + begin * shape.tail().numel(), shape.with_rows(end - begin), group};
}

ParameterSlot ParameterSlot::operator[](std::int64_t i) const {
  const ParameterSlot row = rows(i, i + 1);
  return {row.offset, shape.tail(), group};
}

ParameterSlot ParameterStore::reserve(Shape shape, ParameterGroup group, bool decay) {
  constexpr std::int64_t kAlign = kTensorAlignment / sizeof(Bf16);  // elements
  std::int64_t& size = size_[index(group)];
  std::vector<Run>& runs = runs_[index(group)];
  const ParameterSlot slot{size, shape, group};
  size += (shape.numel() + kAlign - 1) / kAlign * kAlign;
  if (runs.empty() || runs.back().decay != decay) runs.push_back({slot.offset, size, decay});
  runs.back().end = size;
  return slot;
}

ParameterSlot ParameterStore::reserve(Shape shape, bool decay) { return reserve(shape, ParameterGroup::Dense, decay); }

std::vector<ParameterSlot> ParameterStore::reserve_experts(const std::vector<Shape>& shapes) {
  auto& layer = expert_layers_.emplace_back();
  for (const Shape& shape : shapes) layer.push_back(reserve(shape, ParameterGroup::Expert, true));
  return layer;
}

void ParameterStore::name(std::string name, ParameterSlot slot, bool matrix) {
  named_.push_back({std::move(name), slot, matrix, ordinals_++});
  elements_ += slot.shape.numel();
}

void ParameterStore::name_elsewhere(const Shape& shape) {
  ++ordinals_;
  elements_ += shape.numel();
}

void ParameterStore::allocate(Device device, bool training, DType weights) {
  training_ = training;
  weight_type_ = weights;
  for (const ParameterGroup g : kParameterGroups) {
    weights_[index(g)] = Tensor(device, weights, {flat_size(g)});
    if (training) grads_[index(g)] = Tensor(device, DType::F32, {flat_size(g)});
  }
}

std::size_t ParameterStore::bytes() const {
  return idx(size_[0] + size_[1]) * (size_of(weight_type_) + (training_ ? sizeof(float) : 0));
}

void ParameterStore::wait_for_weights(const ParameterSlot& s) const {
  std::erase_if(coming_, [&](const Coming& c) {
    const bool wanted =
        c.range.group == s.group && c.range.begin < s.offset + s.shape.numel() && s.offset < c.range.end;
    if (wanted) c.compute->follow(*c.event);
    return wanted;
  });
}

TensorView ParameterStore::window(const Tensor (&tensors)[2], const ParameterSlot& s) const {
  const TensorView t = tensors[index(s.group)].view();
  if (t.null()) return {};
  return t.rows(s.offset, s.offset + s.shape.numel()).reshape(s.shape);
}

}  // namespace emox
