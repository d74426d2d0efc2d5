#include "runtime/core/tensor.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "runtime/core/accelerator.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/core/out_of_memory.h"

namespace emox {
namespace {
constexpr std::size_t kHugePage = std::size_t{2} << 20;
std::atomic<std::int64_t> g_allocated{0};
std::atomic<std::int64_t> g_peak{0};
thread_local MemoryMeasurement* t_measurement = nullptr;

void count(std::int64_t bytes) {
  const std::int64_t now = g_allocated.fetch_add(bytes) + bytes;
  std::int64_t peak = g_peak.load();
  while (now > peak && !g_peak.compare_exchange_weak(peak, now)) {
  }
}

void* device_memory(Device device, std::size_t bytes) {
  Accelerator* const cuda = cuda::accelerator();
  require(cuda != nullptr, "cannot allocate {} bytes on a CUDA device: this emox was built without CUDA", bytes);
  void* const memory = cuda->allocate(device.index, bytes);
  if (memory != nullptr) return memory;
  const DeviceProperties p = cuda->properties(device.index);
  const auto mib = [](std::size_t n) { return static_cast<double>(n) / 1048576.0; };
  fail<OutOfMemoryError>(
      "out of memory on CUDA device {} ({}): could not allocate {:.1f} MiB; of {:.1f} MiB {:.1f} are free, tensors "
      "hold {:.1f}. Use fewer train.micro_batch_sequences or a smaller model; 'emox plan RECIPE --run.device=cuda' "
      "shows "
      "what needs it",
      device.index, p.name, mib(bytes), mib(p.memory), mib(p.free), mib(idx(g_allocated.load())));
}
}  // namespace

MemoryMeasurement::MemoryMeasurement() : outer_(t_measurement) { t_measurement = this; }
MemoryMeasurement::~MemoryMeasurement() { t_measurement = outer_; }

MemoryStats memory_stats() { return {g_allocated.load(), g_peak.load()}; }
void reset_memory_peak() { g_peak.store(g_allocated.load()); }

Buffer::Buffer(Device device, std::size_t bytes) : bytes_(bytes), device_(device) {
  if (bytes == 0) return;
  if (t_measurement != nullptr) {
    t_measurement->bytes_ += static_cast<std::int64_t>(bytes);
    return;
  }
  if (device.type == DeviceType::Cuda) {
    data_ = device_memory(device, bytes);
    count(static_cast<std::int64_t>(bytes));
    return;
  }
  const bool huge = bytes >= kHugePage;
  const std::size_t align = huge ? kHugePage : kTensorAlignment;
  const std::size_t rounded = (bytes + align - 1) / align * align;
  data_ = std::aligned_alloc(align, rounded);
  require<OutOfMemoryError>(
      data_ != nullptr,
      "out of memory: could not allocate {:.1f} MiB ({:.1f} MiB are in use by tensors); use fewer "
      "micro_batch_sequences, a smaller model or more ranks",
      static_cast<double>(bytes) / 1048576.0, static_cast<double>(g_allocated.load()) / 1048576.0);
  // One 2 MiB page fault instead of 512; the advice may be refused, which costs only time.
  if (huge) madvise(data_, rounded, MADV_HUGEPAGE);
  std::memset(data_, 0, rounded);
  count(static_cast<std::int64_t>(bytes));
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)), device_(other.device_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    release();
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
    device_ = other.device_;
  }
  return *this;
}

Buffer::~Buffer() { release(); }

void Buffer::release() noexcept {
  if (data_ == nullptr) return;
  if (device_.type == DeviceType::Cuda)
    cuda::accelerator()->release(device_.index, data_);
  else
    std::free(data_);
  count(-static_cast<std::int64_t>(bytes_));
  data_ = nullptr;
}

TensorView TensorView::rows(std::int64_t begin, std::int64_t end) const {
  require<ShapeError>(rank() > 0 && 0 <= begin && begin <= end && end <= shape_[0], "rows [{}, {}) of a tensor {}",
                      begin, end, shape_.str());
  const std::size_t stride = idx(shape_.tail().numel()) * size_of(dtype_);
  auto* start = data_ == nullptr ? nullptr : static_cast<char*>(data_) + idx(begin) * stride;
  return {start, dtype_, shape_.with_rows(end - begin), device_};
}

TensorView TensorView::operator[](std::int64_t i) const { return rows(i, i + 1).reshape(shape_.tail()); }

TensorView TensorView::reshape(Shape shape) const {
  require<ShapeError>(shape.numel() == numel(), "cannot view {} elements of shape {} as {}", numel(), shape_.str(),
                      shape.str());
  return {data_, dtype_, shape, device_};
}

void TensorView::check_dtype(DType wanted) const {
  require<ShapeError>(dtype_ == wanted, "tensor {} holds {}, not {}", shape_.str(), name_of(dtype_), name_of(wanted));
}

Tensor::Tensor(Device device, DType dtype, Shape shape)
    : buffer_(device, idx(shape.numel()) * size_of(dtype)), view_(buffer_.data(), dtype, shape, device) {}

}  // namespace emox
