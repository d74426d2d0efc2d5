// The exponential functions inside the ops, seen through ops that give them back nearly bare: relative errors over the
// whole range.
#include <cmath>

#include "runtime/core/idx.h"
#include "runtime/ops/layers.h"
#include "runtime/ops/moe.h"
#include "tests/runtime/op_testing.h"

namespace emox::test {
namespace {

// Every step of 1/64, and the neighbours of the points where the range reduction changes over.
std::vector<float> points(float low, float high) {
  std::vector<float> x;
  for (float v = low; v <= high; v += 1.0F / 64) x.push_back(v);
  for (float half = std::ceil(low) + 0.5F; half < high; half += 1.0F) {
    const auto edge = static_cast<float>(static_cast<double>(half) * std::log(2.0));
    if (edge <= low || edge >= high) continue;
    for (const float v : {std::nextafter(edge, low), edge, std::nextafter(edge, high)}) x.push_back(v);
  }
  return x;
}

// e^-x is off by at most 2 units, the sum, the quotient and the two products by one half each.
constexpr double kSigmoid = 4.5 * kEps;

TEST(Exponential, SigmoidOfSwiglu) {
  const std::vector<float> x = points(-87.0F, 87.0F);
  const auto rows = static_cast<std::int64_t>(x.size());
  const Tensor h({}, DType::F32, {rows, 2}), a = poison({rows, 1});
  for (std::int64_t i = 0; i < rows; ++i) {
    h.view().data<float>()[2 * i] = x[idx(i)];
    h.view().data<float>()[2 * i + 1] = 1.0F;
  }
  Context ctx = context();
  ops::swiglu(ctx, a, h, {});
  const std::vector<float> got = floats(a);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double v = x[i], want = v / (1.0 + std::exp(-v));
    ASSERT_NEAR(got[i], want, kSigmoid * std::abs(want)) << "x = " << v;
  }
}

TEST(Exponential, SigmoidOfExtremes) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  const Tensor h =
      tensor_of(std::vector<float>{-1e30F, 1, -100, 1, 100, 1, 1e30F, 1, inf, 1, std::nanf(""), 1}, {6, 2});
  const Tensor a = poison({6, 1});
  Context ctx = context();
  ops::swiglu(ctx, a, h, {});
  const std::vector<float> got = floats(a);
  EXPECT_NEAR(got[0], 0.0, 1e30 * 1.3e-38);  // the sigmoid ends at 1.3e-38, not at 0
  EXPECT_NEAR(got[1], 0.0, 100 * 1.3e-38);
  EXPECT_EQ(got[2], 100.0F);
  EXPECT_EQ(got[3], 1e30F);
  EXPECT_EQ(got[4], inf);
  EXPECT_TRUE(std::isnan(got[5]));
}

// One token sees itself (score 0, value 0) and one other (score x <= 0, value 1): e^x / (1 + e^x).
TEST(Exponential, OfAttention) {
  const std::vector<float> x = points(-87.0F, 0.0F);
  const auto pairs = static_cast<std::int64_t>(x.size());
  const Tensor qkv = filled({2 * pairs, 3}, 0.0F), out = poison({2 * pairs, 1}), lse = poison({1, 2 * pairs});
  ref::Ids segments{0};
  for (std::int64_t i = 0; i < pairs; ++i) {
    float *other = qkv.view().data<float>() + 6 * i, *self = other + 3;
    self[0] = 1.0F;
    other[1] = x[idx(i)];
    other[2] = 1.0F;
    segments.push_back(static_cast<std::int32_t>(2 * i + 2));
  }
  Context ctx = context();
  ops::attention(ctx, out, lse, qkv, ids_of(segments), 1);
  const std::vector<float> got = floats(out);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double want = std::exp(static_cast<double>(x[i])) / (1.0 + std::exp(static_cast<double>(x[i])));
    ASSERT_NEAR(got[2 * i + 1], want, kSigmoid * want) << "x = " << x[i];
  }
}

// A logit of 0 and one of x <= 0: the same quotient.
TEST(Exponential, OfSoftmax) {
  const std::vector<float> x = points(-87.0F, 0.0F);
  const auto rows = static_cast<std::int64_t>(x.size());
  const Tensor logits = filled({rows, 2}, 0.0F), p = poison({rows, 2});
  for (std::int64_t i = 0; i < rows; ++i) logits.view().data<float>()[2 * i] = x[idx(i)];
  Context ctx = context();
  ops::router_softmax(ctx, p, logits);
  const std::vector<float> got = floats(p);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double want = std::exp(static_cast<double>(x[i])) / (1.0 + std::exp(static_cast<double>(x[i])));
    ASSERT_NEAR(got[2 * i], want, kSigmoid * want) << "x = " << x[i];
  }
}

}  // namespace
}  // namespace emox::test
