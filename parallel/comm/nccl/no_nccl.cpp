// Where emox is built without NCCL.
#include "parallel/comm/nccl/nccl_transport.h"
#include "runtime/core/error.h"

namespace emox {

std::unique_ptr<DeviceTransport> make_nccl_transport(Communicator&, DeviceQueue&) {
  fail<UsageError>(
      "this emox was built without NCCL: configure it where nccl.h is, or use parallel.communicator = staged");
}

}  // namespace emox
