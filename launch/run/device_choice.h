// Where a run computes, in which type, and why there.
#pragma once

#include <string>
#include <vector>

#include "launch/config/recipe.h"
#include "parallel/comm/communicator.h"
#include "runtime/core/device.h"
#include "runtime/core/dtype.h"

namespace emox {

struct DeviceChoice {
  Device device;
  DType activations = DType::F32;
  std::string why;  ///< "run.device = cpu", "run.device = auto: no NVIDIA driver is installed here", ...
  bool on_gpu() const { return device.type != DeviceType::Cpu; }
};

/// Why GPU `index` of this machine cannot be used, and what to do; empty: it can.
std::string no_gpu(int index = 0);

/// For one rank. UsageError where this device cannot be used, or has no such precision; what to do is said.
DeviceChoice choose_device(DeviceKind device, Precision precision);

/// For the ranks of a job, each with the device of its place in its node, or the only one that it sees (Slurm's masks).
/// All compute on GPUs or none does. UsageError on every rank, as above, and where ranks share a device, which only
/// `staged` can do. Collective.
DeviceChoice choose_device(Communicator& world, DeviceKind device, Precision precision, CommunicatorKind communicator);
/// A line a node, on rank 0: "node 0: ranks 0-7 on GPUs 0-7 (...)". Collective.
std::vector<std::string> binding_lines(Communicator& world, const DeviceChoice& choice);

/// For ranks that need not exist: `cuda` needs no GPU here, `auto` means what it would mean here.
DeviceChoice planned_device(const Recipe& recipe);

}  // namespace emox
