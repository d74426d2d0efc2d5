// Tensors: Buffer owns memory, TensorView looks at it, Tensor is both.
//
// Only ops, parallel/comm, parallel/checkpoint and host staging buffers may call data() (design 4.13); everything else
// passes views around.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/core/device.h"
#include "runtime/core/dtype.h"
#include "runtime/core/idx.h"
#include "runtime/core/shape.h"

namespace emox {

/// Bytes held by all Buffers of this process, now and at most since the start.
struct MemoryStats {
  std::int64_t allocated = 0;
  std::int64_t peak = 0;
};
MemoryStats memory_stats();
/// Starts a new peak from what is allocated now.
void reset_memory_peak();

/// While it lives, Buffers made on this thread take no memory: they are counted here, and their data() is null. So the
/// code that allocates can be asked what it would take, for a model and ranks that this machine could not hold.
class MemoryMeasurement {
 public:
  MemoryMeasurement();
  ~MemoryMeasurement();
  MemoryMeasurement(const MemoryMeasurement&) = delete;
  MemoryMeasurement& operator=(const MemoryMeasurement&) = delete;
  /// Of all Buffers made so far, even those that are gone.
  std::int64_t bytes() const { return bytes_; }

 private:
  friend class Buffer;
  MemoryMeasurement* outer_;
  std::int64_t bytes_ = 0;
};

/// Bytes: what cudaMalloc gives, and more than any vector access needs.
inline constexpr std::size_t kTensorAlignment = 256;

/// Owns device memory, zeroed, aligned to kTensorAlignment (2 MiB, on huge pages where the kernel grants them, when
/// large).
class Buffer {
 public:
  Buffer() = default;
  Buffer(Device device, std::size_t bytes);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();

  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  Device device() const { return device_; }

 private:
  void release() noexcept;
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
  Device device_;
};

/// A contiguous row-major window on memory that somebody else owns. Copying it copies no elements.
class TensorView {
 public:
  TensorView() = default;
  TensorView(void* data, DType dtype, Shape shape, Device device = {})
      : data_(data), shape_(shape), dtype_(dtype), device_(device) {}

  const Shape& shape() const { return shape_; }
  std::int64_t dim(int i) const { return shape_[i]; }
  int rank() const { return shape_.rank(); }
  /// 0 for a view of nothing.
  std::int64_t numel() const { return null() && rank() == 0 ? 0 : shape_.numel(); }
  std::size_t bytes() const { return idx(numel()) * size_of(dtype_); }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  /// True for a view of nothing (an optional argument that was left out).
  bool null() const { return data_ == nullptr; }

  /// Rows [begin, end) of the first extent.
  TensorView rows(std::int64_t begin, std::int64_t end) const;
  /// Row i without its first extent.
  TensorView operator[](std::int64_t i) const;
  /// The same elements under another shape.
  TensorView reshape(Shape shape) const;

  void* raw() const { return data_; }
  template <typename T>
  T* data() const {
    check_dtype(dtype_of<T>());
    return static_cast<T*>(data_);
  }

 private:
  void check_dtype(DType wanted) const;
  void* data_ = nullptr;
  Shape shape_;
  DType dtype_ = DType::F32;
  Device device_;
};

/// A view together with the memory it looks at.
class Tensor {
 public:
  Tensor() = default;
  Tensor(Device device, DType dtype, Shape shape);
  const TensorView& view() const { return view_; }
  operator TensorView() const { return view_; }

 private:
  Buffer buffer_;
  TensorView view_;
};

}  // namespace emox
