// SwiGLU and its gradient on a device against the CPU.
#include <algorithm>
#include <cmath>
#include <limits>

#include "runtime/core/bf16.h"
#include "runtime/ops/layers.h"
#include "tests/cuda/device_test.h"

namespace emox::test {
namespace {

/// One rounding to bf16, at most half of the spacing.
constexpr double kBf16Rounding = kBf16Epsilon / 2;
/// Of f32 results: an exponential, a quotient and a few products, each off by at most 2^-23.
constexpr double kF32 = 16 * 0x1.0p-23;

double largest(const std::vector<float>& v) {
  double most = 0;
  for (const float x : v) most = std::max(most, std::abs(static_cast<double>(x)));
  return most;
}

struct Results {
  std::vector<float> a, dh, again, dgates;
  friend bool operator==(const Results&, const Results&) = default;
};

struct SwigluCase {
  std::int64_t rows, width;
  bool gated = true, in_place = false;
  float size = 1.0F;
};

class SwigluTest : public DeviceTest {
 protected:
  Results on_cpu(const SwigluCase& c, const Tensor& h, const Tensor& da, const Tensor& gates) {
    const Tensor a({}, DType::F32, da.view().shape()), dh({}, DType::F32, h.view().shape()),
        again({}, DType::F32, da.view().shape()), dgates({}, DType::F32, {c.rows});
    const TensorView g = c.gated ? gates.view() : TensorView();
    ops::swiglu(cpu, a, h, g);
    ops::swiglu_backward(cpu, dh, again, c.gated ? dgates.view() : TensorView(), da, h, g);
    return {floats(a), floats(dh), floats(again), c.gated ? floats(dgates) : std::vector<float>{}};
  }
  Results on_device(Context& ctx, const SwigluCase& c, const Tensor& h, const Tensor& da, const Tensor& gates) {
    const bool low = ctx.activations == DType::BF16;
    const Tensor dev_h = low ? up_bf16(h) : up(h), dev_da = low ? up_bf16(da) : up(da), dev_gates = up(gates);
    const Tensor a = garbage(ctx.activations, da.view().shape()), dgates = garbage(DType::F32, {c.rows});
    const Tensor dh = garbage(ctx.activations, h.view().shape()), again = garbage(ctx.activations, da.view().shape());
    const TensorView g = c.gated ? dev_gates.view() : TensorView();
    ops::swiglu(ctx, a, dev_h, g);
    const TensorView to_h = c.in_place ? dev_h.view() : dh.view(), to_a = c.in_place ? dev_da.view() : again.view();
    ops::swiglu_backward(ctx, to_h, to_a, c.gated ? dgates.view() : TensorView(), dev_da, dev_h, g);
    return {floats(a), floats(to_h), floats(to_a), c.gated ? floats(dgates) : std::vector<float>{}};
  }
  void check(const SwigluCase& c, unsigned seed) {
    SCOPED_TRACE(::testing::Message() << c.rows << " rows of " << c.width << (c.gated ? ", gated" : "")
                                      << (c.in_place ? ", in place" : "") << ", seed " << seed);
    const Tensor h = random_tensor({c.rows, 2 * c.width}, seed, c.size),
                 da = random_tensor({c.rows, c.width}, seed + 1);
    const Tensor gates = random_tensor({c.rows}, seed + 2);
    for (const bool low : {false, true}) {
      SCOPED_TRACE(low ? "bf16" : "f32");
      const Tensor low_h = rounded(h), low_da = rounded(da);
      const Tensor &wide_h = low ? low_h : h, &wide_da = low ? low_da : da;
      const Results want = on_cpu(c, wide_h, wide_da, gates);
      Context& ctx = low ? gpu_bf16 : gpu;
      const Results got = on_device(ctx, c, h, da, gates);
      const double output = low ? kBf16Rounding + kF32 : kF32;
      // 1 + u (1 - s) has a zero: there the error is that of its terms, which |da| |gate| max(|h|)^2 bounds.
      const double most = largest(floats(wide_h)) * (1 + largest(floats(wide_h))) * largest(floats(wide_da)) *
                          (c.gated ? largest(floats(gates)) : 1.0);
      EXPECT_TRUE(agree(got.a, want.a, output, 0));
      EXPECT_TRUE(agree(got.again, want.again, output, 0));
      EXPECT_TRUE(agree(got.dh, want.dh, output, kF32 * most));
      // A sum of `width` terms in another order.
      const double terms = largest(floats(wide_da)) * largest(floats(wide_h)) * largest(floats(wide_h));
      EXPECT_TRUE(agree(got.dgates, want.dgates, 0, (16 + static_cast<double>(c.width) / 2) * 0x1.0p-23 * terms));
      EXPECT_TRUE(got == on_device(ctx, c, h, da, gates)) << "the same call gave other bits";
    }
  }
};

TEST_F(SwigluTest, EqualsTheCpu) {
  unsigned seed = 1;
  for (const bool in_place : {false, true}) {
    for (const auto& [rows, width] : {std::pair<std::int64_t, std::int64_t>{0, 5},
                                      {1, 1},
                                      {1, 8},
                                      {3, 7},
                                      {5, 20},
                                      {9, 64},
                                      {17, 33},
                                      {8, 256},
                                      {33, 264},
                                      {2, 1000}}) {
      check({rows, width, true, in_place}, seed++);
      check({rows, width, false, in_place}, seed++);
    }
  }
}

TEST_F(SwigluTest, LargeInputs) { check({4, 40, true, false, 60.0F}, 91); }

TEST_F(SwigluTest, ReadsAndWritesViewsThatAreNotAligned) {
  // One element behind a multiple of 16 bytes.
  constexpr std::int64_t kRows = 3, kWidth = 16;
  const Tensor h = random_tensor({1 + kRows * 2 * kWidth}, 7), a({}, DType::F32, {kRows, kWidth});
  const auto behind = [](const Tensor& t, Shape shape) { return t.view().rows(1, t.view().dim(0)).reshape(shape); };
  ops::swiglu(cpu, a, behind(rounded(h), {kRows, 2 * kWidth}), {});
  for (const bool low : {false, true}) {
    Context& ctx = low ? gpu_bf16 : gpu;
    const Tensor dev = low ? up_bf16(h) : up(rounded(h)), out = garbage(ctx.activations, {1 + kRows * kWidth});
    ops::swiglu(ctx, behind(out, {kRows, kWidth}), behind(dev, {kRows, 2 * kWidth}), {});
    std::vector<float> got = floats(out);
    EXPECT_TRUE(std::isnan(got.front())) << "written before the first element";
    got.erase(got.begin());
    EXPECT_TRUE(agree(got, floats(a), low ? kBf16Rounding + kF32 : kF32, 0));
  }
}

TEST_F(SwigluTest, TheSigmoidEndsWhereTheCpusDoes) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> u{0.0F, -0.0F, 87.0F, -87.0F, 88.0F, -88.0F, 120.0F, -120.0F, 1e30F, -1e30F, inf, nan};
  std::vector<float> h = u;
  h.resize(2 * u.size(), 1.0F);
  const auto width = static_cast<std::int64_t>(u.size());
  const Tensor host = tensor_of(h, {1, 2 * width}), a({}, DType::F32, {1, width});
  ops::swiglu(cpu, a, host, {});
  const Tensor out = garbage(DType::F32, {1, width});
  ops::swiglu(gpu, out, up(host), {});
  // e^-x at |x| = 87: its error grows with that of the argument, 87 2^-24.
  EXPECT_TRUE(agree(floats(out), floats(a), 128 * 0x1.0p-24, 1e-37));
}

}  // namespace
}  // namespace emox::test
