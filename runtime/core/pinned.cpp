#include "runtime/core/pinned.h"

#include "runtime/core/out_of_memory.h"

namespace emox {

void PinnedMemory::ensure(std::size_t bytes) {
  if (bytes <= bytes_) return;
  release();
  Accelerator* const cuda = cuda::accelerator();
  require(cuda != nullptr, "pinned host memory of {} bytes: this emox was built without CUDA", bytes);
  const std::size_t wanted = bytes + bytes / 4;
  data_ = cuda->allocate_pinned(wanted);
  require<OutOfMemoryError>(data_ != nullptr, "out of pinned host memory: {:.1f} MiB for copies to and from a device",
                            static_cast<double>(wanted) / 1048576.0);
  bytes_ = wanted;
}

void PinnedMemory::release() noexcept {
  if (data_ != nullptr) cuda::accelerator()->release_pinned(data_);
  data_ = nullptr;
  bytes_ = 0;
}

}  // namespace emox
