// Ranks that compute on devices: control traffic goes over the host's communicator, device tensors over a
// DeviceTransport.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "parallel/comm/communicator.h"
#include "parallel/comm/device_transport.h"
#include "runtime/core/accelerator.h"

namespace emox {

/// Queues of one device for the transfers of communicators, used again when those are gone.
class TransferQueues {
 public:
  explicit TransferQueues(Device device) : device_(device) {}
  Device device() const { return device_; }
  DeviceQueue& take();
  void give_back(DeviceQueue& queue) { free_.push_back(&queue); }

 private:
  Device device_;
  std::vector<std::unique_ptr<DeviceQueue>> all_;
  std::vector<DeviceQueue*> free_;
};

using MakeDeviceTransport = std::function<std::unique_ptr<DeviceTransport>(Communicator& host, DeviceQueue& queue)>;

/// The ranks of `host`, each with its device: tensors on the host go over it, tensors on the device over what `make`
/// makes. Collective. `compute`: the queue that the results are for. It and `queues` must outlive the communicator and
/// what is split from it; Telemetry may still ask queues for times then, so `queues` outlive that, too.
std::unique_ptr<Communicator> make_device_communicator(std::unique_ptr<Communicator> host, DeviceQueue& compute,
                                                       TransferQueues& queues, const MakeDeviceTransport& make);

}  // namespace emox
