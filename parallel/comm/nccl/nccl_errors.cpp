#include "parallel/comm/nccl/nccl_errors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <initializer_list>

namespace emox {
namespace {

bool says(std::string_view text, std::initializer_list<std::string_view> parts) {
  return std::any_of(parts.begin(), parts.end(),
                     [&](std::string_view part) { return text.find(part) != std::string_view::npos; });
}

/// The variable with the value that it has here.
std::string variable(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? fmt::format("{} (not set)", name) : fmt::format("{} (now \"{}\")", name, value);
}

std::string networks() {
  return fmt::format(
      "{} names the interfaces that all nodes reach each other by, {} the InfiniBand adapters; NCCL_IB_DISABLE=1 goes "
      "without InfiniBand",
      variable("NCCL_SOCKET_IFNAME"), variable("NCCL_IB_HCA"));
}

}  // namespace

std::string nccl_cure(ncclResult_t code, std::string_view said) {
  if (says(said, {"Duplicate GPU"}))
    return "start one rank a GPU, or let ranks share GPUs with parallel.communicator = staged";
  if (says(said, {"Mismatched NCCL version"}))
    return "all ranks need the same NCCL: see which libnccl.so.2 LD_LIBRARY_PATH leads to on each node";
  if (says(said, {"no socket interface"}))
    return fmt::format("{} names no interface of this node, or it has none that is up (ip -br address)",
                       variable("NCCL_SOCKET_IFNAME"));
  if (says(said, {"driver version is insufficient", "load CUDA driver", "no CUDA-capable device"}))
    return "there is no GPU here, or its driver is older than this emox needs: emox doctor says which";
  if (says(said, {"out of memory"}))
    return "the device has no memory left for NCCL's buffers: lower train.micro_batch_sequences";
  if (says(said, {"/dev/shm", "shared memory"}))
    return "make room in /dev/shm (containers have little by default), or set NCCL_SHM_DISABLE=1";
  if (says(said, {"ibv_", "NET/IB", "IB device"})) return networks();
  switch (code) {
    case ncclSystemError:
      return fmt::format("the network or shared memory cannot be used: {}; see that /dev/shm has room", networks());
    case ncclRemoteError:
      return "another rank has gone, or the network to it failed: the first message of the other ranks says which";
    case ncclInvalidUsage:
      return "two ranks may have the same GPU (start one rank a GPU, or use parallel.communicator = staged), or "
             "different versions of NCCL";
    case ncclUnhandledCudaError:
      return "the device failed or has no memory left";
    default:
      return "it may be a fault of emox or of NCCL";
  }
}

}  // namespace emox
