// Host memory that a device copies from and to at full rate, and without the host waiting.
#pragma once

#include <cstddef>

#include "runtime/core/accelerator.h"

namespace emox {

class PinnedMemory {
 public:
  PinnedMemory() = default;
  ~PinnedMemory() { release(); }
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;

  /// At least so many bytes; what was in it is lost when it has to grow, so no copy may be under way then.
  /// OutOfMemoryError.
  void ensure(std::size_t bytes);
  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  void release() noexcept;
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace emox
