// The device of a test program: none, where it is linked without one; the emulated or a real GPU, where it is linked
// with the CUDA backend. Tests that are compiled once run on both.
#pragma once

#include <memory>
#include <vector>

#include "parallel/comm/device_communicator.h"
#include "runtime/core/accelerator.h"
#include "runtime/core/context.h"
#include "runtime/core/tensor.h"

namespace emox::test {

/// Whether there is one.
bool has_device();
/// Of the thread's DeviceRank, else device 0's, one for the process.
DeviceQueue& device_queue();

/// A rank that computes on a device: its queue, and the communicator for its tensors. On the rank's thread.
class DeviceRank {
 public:
  DeviceRank(Communicator& host, int device, const MakeDeviceTransport& transport, DType activations = DType::F32);
  ~DeviceRank();
  DeviceRank(const DeviceRank&) = delete;
  DeviceRank& operator=(const DeviceRank&) = delete;
  Communicator& comm() { return *comm_; }
  Context& ctx() { return ctx_; }

 private:
  std::unique_ptr<DeviceQueue> queue_;
  TransferQueues transfers_;
  std::unique_ptr<Communicator> comm_;
  Context ctx_;
};
Context device_context(DType activations = DType::F32);
/// On the device in f32 where there is one, else on the CPU.
Context any_context();

/// The bytes of a view, wherever they lie.
std::vector<unsigned char> bytes_at(const TensorView& x);
/// The same elements where the context computes.
Tensor on(Context& ctx, const TensorView& host);

}  // namespace emox::test
