// Products on the device against the CPU's. What a sum of K products may be off by depends on the products' sizes, not
// on the sum's: the CPU computes the same op once more on absolute values for that.
#pragma once

#include <cmath>
#include <vector>

#include "runtime/core/bf16.h"
#include "tests/cuda/device_test.h"

namespace emox::test {

struct ProductTolerance {
  double terms = 1;          ///< of the longest sum
  bool bf16_result = false;  ///< rounded to bf16 at the end
};

/// Two f32 sums of `terms` products whose absolute values add up to `magnitude` differ by their roundings, which are
/// random: a few times 2^-24 sqrt(terms) of it.
inline ::testing::AssertionResult sums_agree(const std::vector<float>& got, const std::vector<float>& want,
                                             const std::vector<float>& magnitude, const ProductTolerance& t) {
  if (got.size() != want.size() || got.size() != magnitude.size())
    return ::testing::AssertionFailure() << got.size() << " elements, expected " << want.size();
  const double rounding = (4 * std::sqrt(t.terms) + 4) * 0x1p-24;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double w = want[i];
    const double limit =
        rounding * static_cast<double>(magnitude[i]) + (t.bf16_result ? 0.5 * kBf16Epsilon * 1.01 * std::abs(w) : 0.0);
    if (!(std::abs(static_cast<double>(got[i]) - w) <= limit))
      return ::testing::AssertionFailure() << "element " << i << " of " << got.size() << " is " << got[i]
                                           << ", expected " << want[i] << " within " << limit;
  }
  return ::testing::AssertionSuccess();
}

inline Tensor absolute(const TensorView& x) {
  std::vector<float> v = values_of<float>(x);
  for (float& e : v) e = std::abs(e);
  return tensor_of(v, x.shape());
}

inline Tensor host_copy(const TensorView& x) { return tensor_of(values_of<float>(x), x.shape()); }

}  // namespace emox::test
