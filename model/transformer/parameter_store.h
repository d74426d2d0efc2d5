// The parameters that a rank holds in two flat buffers, with their gradients in buffers of the same layout: the dense
// ones, equal on all ranks, and those of the experts that this rank holds. Who owns which elements, and the optimizer's
// moments, is model/optim's business.
//
// Layers reserve what they need, in a fixed order, and give names to it. A name may be a slice of what was reserved:
// q_proj, k_proj and v_proj are rows of one matrix, so that one product serves all three. Names are those of spec 8.1.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime/core/accelerator.h"
#include "runtime/core/idx.h"
#include "runtime/core/tensor.h"

namespace emox {

enum class ParameterGroup : std::uint8_t { Dense, Expert };
inline constexpr ParameterGroup kParameterGroups[] = {ParameterGroup::Dense, ParameterGroup::Expert};

/// A place in a group's flat buffers.
struct ParameterSlot {
  std::int64_t offset = 0;  ///< in elements
  Shape shape;
  ParameterGroup group = ParameterGroup::Dense;
  /// Rows [begin, end) of the first extent as a slot of its own.
  ParameterSlot rows(std::int64_t begin, std::int64_t end) const;
  ParameterSlot operator[](std::int64_t i) const;
};

/// Elements [begin, end) of a group's flat buffers.
struct ParameterRange {
  ParameterGroup group;
  std::int64_t begin, end;
};

struct NamedParameter {
  std::string name;
  ParameterSlot slot;
  bool matrix = true;         ///< drawn from a normal at the start; false: a norm scale, set to 1
  std::uint32_t ordinal = 0;  ///< among the whole model's parameters, whatever this rank holds: keys its first draw
};

class ParameterStore {
 public:
  /// Slots begin at multiples of 128 elements: aligned for every type of two bytes or more. `decay`: AdamW's weight
  /// decay applies (everything but the input embedding, spec 4).
  ParameterSlot reserve(Shape shape, bool decay = true);
  /// The tensors of this rank's experts of one layer, the expert first: [experts, rows, columns].
  std::vector<ParameterSlot> reserve_experts(const std::vector<Shape>& shapes);
  void name(std::string name, ParameterSlot slot, bool matrix = true);
  /// A parameter that another rank holds takes its place in the order.
  void name_elsewhere(const Shape& shape);
  /// Allocates the buffers; gradients, f32, only for training. Weights have the type of activations; where that is not
  /// f32, the optimizer keeps what they are rounded from.
  void allocate(Device device, bool training, DType weights = DType::F32);
  DType weight_type() const { return weight_type_; }

  TensorView weight(const ParameterSlot& s) const {
    if (!coming_.empty()) [[unlikely]]
      wait_for_weights(s);
    return window(weights_, s);
  }
  TensorView grad(const ParameterSlot& s) const { return window(grads_, s); }
  /// Weights of these elements are on their way to this rank until a device has passed the event: whoever asks for them
  /// has `compute` follow it first. In the order in which they come.
  void expect_weights(const ParameterRange& range, std::shared_ptr<DeviceEvent> event, DeviceQueue& compute) const {
    coming_.push_back({range, std::move(event), &compute});
  }
  bool training() const { return training_; }

  const std::vector<NamedParameter>& named() const { return named_; }
  /// Parameters of the model, on whatever rank.
  std::size_t parameter_count() const { return ordinals_; }
  /// Elements of all parameters of the model, on whatever rank (padding between slots not counted).
  std::int64_t element_count() const { return elements_; }

  /// A maximal run of the flat buffers with one decay setting.
  struct Run {
    std::int64_t begin, end;
    bool decay;
  };
  const std::vector<Run>& runs(ParameterGroup g) const { return runs_[index(g)]; }
  /// By layer with experts, what reserve_experts gave it.
  const std::vector<std::vector<ParameterSlot>>& expert_layers() const { return expert_layers_; }
  ParameterSlot flat(ParameterGroup g, std::int64_t begin, std::int64_t end) const {
    return {begin, Shape{end - begin}, g};
  }
  ParameterSlot flat(ParameterGroup g) const { return flat(g, 0, flat_size(g)); }
  std::int64_t flat_size(ParameterGroup g) const { return size_[index(g)]; }
  /// Bytes of weights and gradients.
  std::size_t bytes() const;

 private:
  static constexpr std::size_t index(ParameterGroup g) { return idx(g); }
  ParameterSlot reserve(Shape shape, ParameterGroup group, bool decay);
  TensorView window(const Tensor (&t)[2], const ParameterSlot& s) const;
  void wait_for_weights(const ParameterSlot& s) const;
  struct Coming {
    ParameterRange range;
    std::shared_ptr<DeviceEvent> event;
    DeviceQueue* compute;
  };
  mutable std::vector<Coming> coming_;
  std::int64_t size_[2] = {};
  std::int64_t elements_ = 0;
  std::uint32_t ordinals_ = 0;
  bool training_ = false;
  DType weight_type_ = DType::F32;
  std::vector<NamedParameter> named_;
  std::vector<Run> runs_[2];
  std::vector<std::vector<ParameterSlot>> expert_layers_;
  Tensor weights_[2], grads_[2];
};

}  // namespace emox
