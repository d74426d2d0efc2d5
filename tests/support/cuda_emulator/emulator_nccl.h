// What tests ask of the emulated NCCL.
#pragma once

#include <nccl.h>

#include <cstdint>

namespace emu {

struct NcclOptions {
  double wait_s = 20;           ///< how long streams may wait for peers that do not come: then it is a deadlock
  bool in_progress = true;      ///< calls of a nonblocking communicator may say so, half of them
  bool shared_devices = false;  ///< ranks of one communicator may share a device; else refused, as NCCL does
  int version = NCCL_VERSION_CODE;
  ncclResult_t init = ncclSuccess;  ///< what making a communicator ends with
  bool stuck = false;               ///< making a communicator does not end
  // From its n-th call on (counting from 1) this rank takes part in nothing, and its communicators say so.
  int fail_rank = -1;
  int fail_call = 0;
  ncclResult_t fail_with = ncclRemoteError;
};
NcclOptions& nccl_options();
/// Forgets communicators and the options; after nothing uses them.
void reset_nccl();

/// What ranks on a device have sent since the program began.
struct NcclCounters {
  std::int64_t groups = 0;    ///< launches: groups, and calls outside of one
  std::int64_t messages = 0;  ///< sends
  std::int64_t bytes = 0;     ///< of sends
  std::int64_t collectives = 0;
};
NcclCounters nccl_counters(int device);

}  // namespace emu
