// Device tensors between ranks by NCCL.
#pragma once

#include <memory>

#include "parallel/comm/device_transport.h"

namespace emox {

std::unique_ptr<DeviceTransport> make_nccl_transport(Communicator& host, DeviceQueue& queue);

}  // namespace emox
