// The same op on the CPU, the specification, and on a device: contexts and tensors on both. The device is the emulator,
// or a real one, by what is linked.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "runtime/core/accelerator.h"
#include "runtime/core/context.h"
#include "runtime/core/tensor.h"
#include "runtime/ops/fault.h"
#include "tests/support/device.h"
#include "tests/support/support.h"

namespace emox::test {

/// The element numbers and values of the worst difference; fails beyond |got - want| <= absolute + relative |want|. NaN
/// agrees with NaN, infinities with themselves.
::testing::AssertionResult agree(const std::vector<float>& got, const std::vector<float>& want, double relative,
                                 double absolute);

class DeviceTest : public ::testing::Test {
 protected:
  DeviceTest();
  Context cpu, gpu, gpu_bf16;  // gpu: f32 activations; both on one queue

  /// On the device, the same type and content.
  Tensor up(const TensorView& host);
  /// f32 on the host -> bf16 on the device, rounded.
  Tensor up_bf16(const TensorView& host);
  /// On the device, every byte 0xff: NaN, -1.
  Tensor garbage(DType type, Shape shape);
  template <typename T>
  std::vector<T> down(const TensorView& device) {
    return values_of<T>(device);
  }
  /// f32 or bf16 of the device or the host, as floats.
  std::vector<float> floats(const TensorView& x);
  /// A host tensor whose values are bf16 numbers.
  static Tensor rounded(const TensorView& host);
  /// The fault that device bodies reported since the last call.
  std::optional<ops::Fault> fault();

 private:
  Tensor fault_;
};

}  // namespace emox::test
