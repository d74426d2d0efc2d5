// The experts' products on the device against the CPU.
#include "runtime/ops/experts.h"

#include <random>

#include "runtime/ops/layers.h"
#include "runtime/ops/matmul.h"
#include "tests/cuda/product_testing.h"

namespace emox::test {
namespace {

using Offsets = std::vector<std::int64_t>;

struct Problem {
  Offsets offsets;
  std::int64_t d, f;
  std::int64_t experts() const { return static_cast<std::int64_t>(offsets.size()) - 1; }
  std::int64_t rows() const { return offsets.back(); }
};

Offsets many_experts(std::int64_t experts, unsigned seed) {
  std::mt19937 gen(seed);
  Offsets o{0};
  for (std::int64_t e = 0; e < experts; ++e) o.push_back(o.back() + static_cast<std::int64_t>(gen() % 4));
  return o;
}

struct Case {
  Problem problem;
  float beta;
};

std::vector<Case> cases() {
  return {{{{0, 0}, 8, 8}, 0.0F},
          {{{0, 1}, 1, 1}, 1.0F},
          {{{0, 0, 5, 5, 6, 6}, 20, 12}, 0.0F},
          {{{0, 0, 5, 5, 6, 6}, 20, 12}, 1.0F},
          {{{0, 150, 151}, 9, 7}, 0.0F},
          {{{0, 0, 140, 140}, 32, 24}, 1.0F},
          {{many_experts(127, 1), 16, 8}, 0.0F},
          {{many_experts(6, 2), 136, 72}, 1.0F}};
}

class ExpertsOnDevice : public DeviceTest {
 protected:
  struct Inputs {
    Tensor in, gates, up, down, dout, dup, ddown;
  };
  static Inputs inputs(const Problem& p, unsigned seed) {
    const auto scale = [](std::int64_t width) { return 1.0F / std::sqrt(static_cast<float>(width)); };
    return {random_tensor({p.rows(), p.d}, seed),
            random_tensor({p.rows()}, seed + 1),
            random_tensor({p.experts(), 2 * p.f, p.d}, seed + 2, scale(p.d)),
            random_tensor({p.experts(), p.d, p.f}, seed + 3, scale(p.f)),
            random_tensor({p.rows(), p.d}, seed + 4),
            random_tensor({p.experts(), 2 * p.f, p.d}, seed + 5),
            random_tensor({p.experts(), p.d, p.f}, seed + 6)};
  }
  struct Outputs {
    std::vector<float> out, hidden, drows, dgates, dup, ddown;
    friend bool operator==(const Outputs&, const Outputs&) = default;
  };

  Outputs on_cpu(const Problem& p, const Inputs& x, float beta, bool round) {
    Context ctx = cpu;
    ctx.round_activations = round;
    const Tensor out({}, DType::F32, {p.rows(), p.d}), hidden({}, DType::F32, {p.rows(), 2 * p.f}),
        a({}, DType::F32, {p.rows(), p.f}), at = tensor_of(p.offsets, {p.experts() + 1});
    const ops::ExpertRows rows{x.in, x.gates, hidden, a, at};
    ops::experts(ctx, out, rows, {x.up, x.down});
    const std::vector<float> forward = values_of<float>(hidden);
    const Tensor drows = host_copy(x.dout), dgates({}, DType::F32, {p.rows()}), dup = host_copy(x.dup),
                 ddown = host_copy(x.ddown);
    ops::experts_backward(ctx, drows, dgates, {dup, ddown}, rows, {x.up, x.down}, beta);
    return {values_of<float>(out),  forward, values_of<float>(drows), values_of<float>(dgates), values_of<float>(dup),
            values_of<float>(ddown)};
  }

  Outputs on_device(Context& ctx, const Problem& p, const Inputs& x, float beta) {
    const auto low = [&](const Tensor& v) { return ctx.activations == DType::BF16 ? up_bf16(v) : up(v); };
    const DType type = ctx.activations;
    const Tensor out = garbage(type, {p.rows(), p.d}), hidden = garbage(type, {p.rows(), 2 * p.f}),
                 a = garbage(type, {p.rows(), p.f}), at = up(tensor_of(p.offsets, {p.experts() + 1}));
    const Tensor in = low(x.in), gates = up(x.gates), w_up = low(x.up), w_down = low(x.down);
    const ops::ExpertRows rows{in, gates, hidden, a, at};
    ops::experts(ctx, out, rows, {w_up, w_down});
    const std::vector<float> forward = floats(hidden);
    const Tensor drows = low(x.dout), dgates = garbage(DType::F32, {p.rows()});
    const Tensor dup = beta == 0.0F ? garbage(DType::F32, x.dup.view().shape()) : up(x.dup);
    const Tensor ddown = beta == 0.0F ? garbage(DType::F32, x.ddown.view().shape()) : up(x.ddown);
    ops::experts_backward(ctx, drows, dgates, {dup, ddown}, rows, {w_up, w_down}, beta);
    return {floats(out), forward, floats(drows), floats(dgates), floats(dup), floats(ddown)};
  }

  static void expect_agree(const Outputs& got, const Outputs& want, double tolerance) {
    EXPECT_TRUE(agree(got.out, want.out, tolerance, tolerance)) << "out";
    EXPECT_TRUE(agree(got.hidden, want.hidden, tolerance, tolerance)) << "hidden";
    EXPECT_TRUE(agree(got.drows, want.drows, tolerance, 4 * tolerance)) << "drows";
    EXPECT_TRUE(agree(got.dgates, want.dgates, tolerance, 4 * tolerance)) << "dgates";
    EXPECT_TRUE(agree(got.dup, want.dup, tolerance, 16 * tolerance)) << "dup";
    EXPECT_TRUE(agree(got.ddown, want.ddown, tolerance, 16 * tolerance)) << "ddown";
  }
};

TEST_F(ExpertsOnDevice, EqualTheCpu) {
  unsigned seed = 0;
  for (const auto& [p, beta] : cases()) {
    SCOPED_TRACE(::testing::Message() << p.experts() << " experts, " << p.rows() << " rows, beta " << beta);
    const Inputs x = inputs(p, seed += 10);
    const Outputs got = on_device(gpu, p, x, beta);
    expect_agree(got, on_cpu(p, x, beta, false), 2e-6);
    EXPECT_TRUE(got == on_device(gpu, p, x, beta));
    EXPECT_FALSE(fault());
  }
}

// Against the CPU that rounds what lies between the products, too. Where a sum falls between two bf16 values one may
// round up and the other down, which the next product carries on: single differences of an ulp.
TEST_F(ExpertsOnDevice, InBf16EqualTheRoundingCpu) {
  unsigned seed = 500;
  for (const auto& [p, beta] : cases()) {
    SCOPED_TRACE(::testing::Message() << p.experts() << " experts, " << p.rows() << " rows, beta " << beta);
    Inputs x = inputs(p, seed += 10);
    for (Tensor* t : {&x.in, &x.up, &x.down, &x.dout}) *t = rounded(*t);
    const Outputs got = on_device(gpu_bf16, p, x, beta);
    expect_agree(got, on_cpu(p, x, beta, true), 0x1.02p-7);
    EXPECT_TRUE(got == on_device(gpu_bf16, p, x, beta));
    EXPECT_FALSE(fault());
  }
}

TEST_F(ExpertsOnDevice, NameTheOpWhoseOffsetsAreWrong) {
  const Problem p{{0, 4, 8}, 8, 8};
  Problem wrong = p;
  wrong.offsets = {0, 9, 8};
  const Inputs x = inputs(p, 1);
  const Tensor out = garbage(DType::F32, {8, 8}), hidden = garbage(DType::F32, {8, 16}),
               a = garbage(DType::F32, {8, 8}), at = up(tensor_of(wrong.offsets, {3})), in = up(x.in),
               gates = up(x.gates), w_up = up(x.up), w_down = up(x.down), drows = up(x.dout),
               dgates = garbage(DType::F32, {8}), dup = up(x.dup), ddown = up(x.ddown);
  const ops::ExpertRows rows{in, gates, hidden, a, at};
  ops::experts(gpu, out, rows, {w_up, w_down});
  EXPECT_EQ(fault(), (ops::Fault{ops::Op::experts, 2, 2}));
  for (const float v : floats(out)) ASSERT_TRUE(std::isnan(v));
  ops::experts_backward(gpu, drows, dgates, {dup, ddown}, rows, {w_up, w_down}, 1.0F);
  EXPECT_EQ(fault(), (ops::Fault{ops::Op::experts_backward, 4, 2}));
  EXPECT_EQ(floats(dup), values_of<float>(x.dup));
  EXPECT_EQ(floats(ddown), values_of<float>(x.ddown));
}

}  // namespace
}  // namespace emox::test
