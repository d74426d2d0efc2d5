// Whether a queue's products use Hopper's own instructions. Without CUDA's headers, so that tests can ask and choose.
#pragma once

#include "runtime/core/accelerator.h"

namespace emox::cuda {

/// At first: the device has compute capability 9.0, and the kernels were compiled for just that ("90a").
bool uses_wgmma(const DeviceQueue& queue);
/// For tests and comparisons. Where the kernels were not compiled for it, a product then stops the device.
void use_wgmma(DeviceQueue& queue, bool on);

}  // namespace emox::cuda
