// All parameters of a model in one flat buffer, with their gradients and optimizer moments in buffers of the same
// layout.
//
// Layers reserve what they need, in a fixed order, and give names to it. A name may be a slice of what was reserved:
// q_proj, k_proj and v_proj are rows of one matrix, so that one product serves all three. Names are those of spec 8.1.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/core/tensor.h"

namespace emox {

/// A place in the flat buffers.
struct ParameterSlot {
  std::int64_t offset = 0;  ///< in elements
  Shape shape;
  /// Rows [begin, end) of the first extent as a slot of its own.
  ParameterSlot rows(std::int64_t begin, std::int64_t end) const;
  ParameterSlot operator[](std::int64_t i) const;
};

struct NamedParameter {
  std::string name;
  ParameterSlot slot;
  bool matrix = true;  ///< drawn from a normal at the start; false: a norm scale, set to 1
};

class ParameterStore {
 public:
  /// Slots are 64-byte aligned. `decay`: AdamW's weight decay applies (everything but the input embedding, spec 4).
  ParameterSlot reserve(Shape shape, bool decay = true);
  void name(std::string name, ParameterSlot slot, bool matrix = true);
  /// Allocates the buffers; gradients and moments only for training.
  void allocate(Device device, bool training);

  TensorView weight(const ParameterSlot& s) const { return window(weights_, s); }
  TensorView grad(const ParameterSlot& s) const { return window(grads_, s); }
  TensorView exp_avg(const ParameterSlot& s) const { return window(exp_avg_, s); }
  TensorView exp_avg_sq(const ParameterSlot& s) const { return window(exp_avg_sq_, s); }
  bool training() const { return !grads_.view().null(); }

  const std::vector<NamedParameter>& named() const { return named_; }
  /// Elements of all named parameters (padding between slots not counted).
  std::int64_t element_count() const;

  /// A maximal run of the flat buffers with one decay setting.
  struct Run {
    std::int64_t begin, end;
    bool decay;
  };
  const std::vector<Run>& runs() const { return runs_; }
  ParameterSlot flat(std::int64_t begin, std::int64_t end) const { return {begin, Shape{end - begin}}; }
  std::int64_t flat_size() const { return size_; }

 private:
  TensorView window(const Tensor& t, const ParameterSlot& s) const;
  std::int64_t size_ = 0;
  std::vector<NamedParameter> named_;
  std::vector<Run> runs_;
  Tensor weights_, grads_, exp_avg_, exp_avg_sq_;
};

}  // namespace emox
