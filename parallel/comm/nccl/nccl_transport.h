// Device tensors between ranks by NCCL: one communicator a group, on the group's queue. NCCL's own header stays out of
// this one.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "parallel/comm/device_transport.h"

namespace emox {

/// Why NCCL cannot be used here and what to do; empty: it can, as far as one knows without making a communicator.
std::string no_nccl();
/// "2.28.9"; empty: there is none.
std::string nccl_version();

struct NcclOptions {
  std::size_t most_bytes = std::size_t{1} << 32;  ///< of one call; longer ones are cut
  double init_s = 300;  ///< how long a communicator may take to be made, where its ranks have all come
  double end_s = 10;    ///< how long transfers may take to end with their communicator; then they are aborted
};

/// The ranks of `host`, each with a device of its own. Collective. UsageError where there is no NCCL, CommError where
/// it cannot connect the ranks; on all of them, with the first one's reason and what to do.
std::unique_ptr<DeviceTransport> make_nccl_transport(Communicator& host, DeviceQueue& queue,
                                                     const NcclOptions& options = {});

}  // namespace emox
