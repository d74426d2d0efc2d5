#include "tests/cuda/device_test.h"

#include <cmath>

#include "runtime/core/bf16.h"
#include "runtime/ops/basic.h"

namespace emox::test {

::testing::AssertionResult agree(const std::vector<float>& got, const std::vector<float>& want, double relative,
                                 double absolute) {
  if (got.size() != want.size())
    return ::testing::AssertionFailure() << got.size() << " elements, expected " << want.size();
  double worst = 0;
  std::size_t at = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (got[i] == want[i] || (std::isnan(got[i]) && std::isnan(want[i]))) continue;
    const double limit = absolute + relative * std::abs(static_cast<double>(want[i]));
    const double off = std::abs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
    const double ratio = std::isfinite(off) && limit > 0 ? off / limit : INFINITY;
    if (ratio > worst) worst = ratio, at = i;
  }
  if (worst <= 1) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "element " << at << " is " << got[at] << ", expected " << want[at] << ": "
                                       << worst << " times the tolerance";
}

DeviceTest::DeviceTest()
    : gpu(device_context()), gpu_bf16(device_context(DType::BF16)), fault_(gpu.device, DType::F64, {1}) {
  gpu.fault = gpu_bf16.fault = fault_;
}

Tensor DeviceTest::up(const TensorView& host) { return on(gpu, host); }

Tensor DeviceTest::up_bf16(const TensorView& host) {
  std::vector<Bf16> low(idx(host.numel()));
  for (std::size_t i = 0; i < low.size(); ++i) low[i] = Bf16(host.data<float>()[i]);
  Tensor t(gpu.device, DType::BF16, host.shape());
  ops::copy_from_host(gpu, t, low.data());
  return t;
}

Tensor DeviceTest::garbage(DType type, Shape shape) {
  Tensor t(gpu.device, type, shape);
  const std::vector<unsigned char> ones(t.view().bytes(), 0xff);
  ops::copy_from_host(gpu, t, ones.data());
  return t;
}

std::vector<float> DeviceTest::floats(const TensorView& x) {
  if (x.device().type == DeviceType::Cpu) return values_of<float>(x);
  if (x.dtype() == DType::F32) return down<float>(x);
  std::vector<float> v;
  for (const Bf16 b : down<Bf16>(x)) v.push_back(static_cast<float>(b));
  return v;
}

Tensor DeviceTest::rounded(const TensorView& host) {
  Tensor t({}, DType::F32, host.shape());
  for (std::int64_t i = 0; i < host.numel(); ++i) t.view().data<float>()[i] = rounded_to_bf16(host.data<float>()[i]);
  return t;
}

std::optional<ops::Fault> DeviceTest::fault() {
  const double word = down<double>(fault_).front();
  ops::zero(gpu, fault_);
  return ops::fault_of(word);
}

}  // namespace emox::test
