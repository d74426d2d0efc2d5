// Where a run computes, in which type, and why there.
#pragma once

#include <string>

#include "launch/config/recipe.h"
#include "runtime/core/device.h"
#include "runtime/core/dtype.h"

namespace emox {

struct DeviceChoice {
  Device device;
  DType activations = DType::F32;
  std::string why;  ///< "run.device = cpu", "run.device = auto: no NVIDIA driver is installed here", ...
  bool on_gpu() const { return device.type != DeviceType::Cpu; }
};

/// Why so many ranks cannot use a GPU here, and what to do; empty: they can.
std::string no_gpu(int ranks);

/// UsageError where this device cannot be used, or has no such precision; what to do is said.
DeviceChoice choose_device(DeviceKind device, Precision precision, int ranks);

/// The same for ranks that need not exist: `cuda` needs no GPU here, `auto` means what it would mean here.
DeviceChoice planned_device(const Recipe& recipe, int ranks);

}  // namespace emox
