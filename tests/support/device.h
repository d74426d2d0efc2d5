// The device of a test program: none, where it is linked without one; the emulated or a real GPU, where it is linked
// with the CUDA backend. Tests that are compiled once run on both.
#pragma once

#include <vector>

#include "runtime/core/accelerator.h"
#include "runtime/core/context.h"
#include "runtime/core/tensor.h"

namespace emox::test {

/// Whether there is one.
bool has_device();
/// Device 0's queue, one for the process.
DeviceQueue& device_queue();
Context device_context(DType activations = DType::F32);
/// On the device in f32 where there is one, else on the CPU.
Context any_context();

/// The bytes of a view, wherever they lie.
std::vector<unsigned char> bytes_at(const TensorView& x);
/// The same elements where the context computes.
Tensor on(Context& ctx, const TensorView& host);

}  // namespace emox::test
