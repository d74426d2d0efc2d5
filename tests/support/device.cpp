#include "tests/support/device.h"

#include <cstring>
#include <memory>

#include "runtime/ops/basic.h"

namespace emox::test {

bool has_device() { return cuda::accelerator() != nullptr && cuda::accelerator()->count() > 0; }

namespace {
thread_local DeviceQueue* g_own_queue = nullptr;
}  // namespace

DeviceRank::DeviceRank(Communicator& host, int device, const MakeDeviceTransport& transport, DType activations)
    : queue_(cuda::accelerator()->open_queue(device)), transfers_({DeviceType::Cuda, device}) {
  g_own_queue = queue_.get();
  comm_ = make_device_communicator(host.split(0, host.rank()), *queue_, transfers_, transport);
  ctx_ = device_context(activations);
}

DeviceRank::~DeviceRank() {
  g_own_queue = nullptr;
  comm_.reset();
}

DeviceQueue& device_queue() {
  if (g_own_queue != nullptr) return *g_own_queue;
  static const std::unique_ptr<DeviceQueue> queue = cuda::accelerator()->open_queue(0);
  return *queue;
}

Context device_context(DType activations) {
  Context ctx;
  ctx.queue = &device_queue();
  ctx.device = ctx.queue->device();
  ctx.activations = activations;
  return ctx;
}

Context any_context() { return has_device() ? device_context() : Context{}; }

std::vector<unsigned char> bytes_at(const TensorView& x) {
  std::vector<unsigned char> bytes(x.bytes());
  Context ctx = x.device().type == DeviceType::Cpu ? Context{} : device_context();
  ops::copy_to_host(ctx, bytes.data(), x);
  return bytes;
}

Tensor on(Context& ctx, const TensorView& host) {
  Tensor t(ctx.device, host.dtype(), host.shape());
  ops::copy_from_host(ctx, t, host.raw());
  return t;
}

}  // namespace emox::test
