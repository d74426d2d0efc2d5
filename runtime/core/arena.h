// Memory planned at start-up, so that a step allocates nothing (design 4.2).
//
// A measuring arena hands out views without memory and only counts; the same code then runs once more on a real arena
// of the size that was counted. What is planned and what is allocated can therefore not differ.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/core/growing_tensor.h"
#include "runtime/core/tensor.h"

namespace emox {

class Arena {
 public:
  /// Counts bytes, gives views that must not be read or written.
  static Arena measuring(Device device = {}, DType activations = DType::F32);
  Arena(Device device, std::size_t bytes, DType activations = DType::F32);

  Device device() const { return device_; }
  /// Begins at a multiple of kTensorAlignment.
  TensorView allocate(DType dtype, Shape shape);
  TensorView f32(Shape shape) { return allocate(DType::F32, shape); }
  TensorView i32(Shape shape) { return allocate(DType::I32, shape); }
  /// What layers pass on, in the type of Context::activations; statistics, logits and sums are f32 or f64 always.
  TensorView activation(Shape shape) { return allocate(activations_, shape); }

  /// Rows whose number is known only while a step runs. They live outside the arena's block but as long as the arena.
  GrowingTensor* growing(DType dtype, Shape shape);
  GrowingTensor* growing_activation(Shape shape) { return growing(activations_, shape); }
  /// Bytes of all growing tensors as they were reserved.
  std::size_t growing_bytes() const { return growing_bytes_; }

  /// Scratch memory is given back by rewinding to a mark; later allocations reuse it.
  std::size_t mark() const { return used_; }
  void rewind(std::size_t mark) { used_ = mark; }
  /// The most bytes in use at any time: the size that a real arena needs.
  std::size_t peak() const { return peak_; }

 private:
  Device device_;
  DType activations_;
  bool measuring_ = false;
  Buffer buffer_;
  std::size_t used_ = 0;
  std::size_t peak_ = 0;
  std::vector<std::unique_ptr<GrowingTensor>> growing_;
  std::size_t growing_bytes_ = 0;
};

}  // namespace emox
