// Where emox is built without NCCL.
#include "parallel/comm/nccl/nccl_transport.h"
#include "runtime/core/error.h"

namespace emox {

std::string no_nccl() {
  return "this emox was built without NCCL: configure it where nccl.h is, or use parallel.communicator = staged";
}
std::string nccl_version() { return {}; }
std::unique_ptr<DeviceTransport> make_nccl_transport(Communicator&, DeviceQueue&, const NcclOptions&) {
  fail<UsageError>("{}", no_nccl());
}

}  // namespace emox
