// AdamW against the scalar formula in double, and the sum of squares behind the gradient norm.
#include "runtime/ops/optim.h"

#include <cmath>

#include "tests/runtime/op_testing.h"

namespace emox::test {
namespace {

using ref::Vec;

ops::AdamW op_options(const ref::AdamOptions& o, std::int64_t step) {
  return {.learning_rate = o.learning_rate,
          .beta1 = o.beta1,
          .beta2 = o.beta2,
          .eps = o.eps,
          .weight_decay = o.weight_decay,
          .grad_scale = o.grad_scale,
          .step = step};
}

// Steps one by one from the float32 state of the op, so that the only difference is the rounding of one step.
void check_adamw(std::int64_t size, const ref::AdamOptions& o, float grad_size) {
  SCOPED_TRACE(::testing::Message() << size << " elements, lr " << o.learning_rate << ", gradients of " << grad_size);
  for (const int threads : {1, 2}) {
    Context ctx = context(threads);
    const Tensor p = random_tensor({size}, 1), m = filled({size}, 0.0F), v = filled({size}, 0.0F);
    for (std::int64_t step = 1; step <= 6; ++step) {
      const Tensor grad = random_tensor({size}, 10 + static_cast<unsigned>(step), grad_size);
      const Vec p0 = ref::doubles(p), m0 = ref::doubles(m), v0 = ref::doubles(v), g = ref::doubles(grad);
      ops::adamw(ctx, p, {}, grad, m, v, op_options(o, step));
      ASSERT_EQ(ref::doubles(grad), g) << "the gradient was changed";
      const Vec p1 = ref::doubles(p), m1 = ref::doubles(m), v1 = ref::doubles(v);
      for (std::int64_t i = 0; i < size; ++i) {
        const ref::AdamState want = ref::adamw({p0[i], m0[i], v0[i]}, g[i], o, step);
        const double scaled = std::abs(g[i] * o.grad_scale);
        // m and v: three roundings of terms no larger than these. The step: m's error over the root, which is at least
        // sqrt(1 - beta2) |g| / sqrt(1 - beta2^t), and the relative roundings of the quotient.
        const double m_error = rounding(3, std::max(std::abs(m0[i]), scaled));
        ASSERT_NEAR(m1[i], want.m, m_error);
        ASSERT_NEAR(v1[i], want.v, rounding(4, want.v) + 1e-44);
        const double t = static_cast<double>(step), root = std::sqrt(want.v / (1 - std::pow(o.beta2, t))) + o.eps;
        const double change = std::abs(want.m) / (1 - std::pow(o.beta1, t)) / root;
        const double change_error = rounding(kFunction, change) + m_error / (1 - std::pow(o.beta1, t)) / root;
        ASSERT_NEAR(p1[i], want.p, rounding(2, std::abs(p0[i])) + o.learning_rate * change_error) << "step " << step;
      }
    }
  }
}

TEST(AdamW, WritesTheRoundedCopy) {
  for (const int threads : {1, 2})
    for (const std::int64_t size : {0, 1, 17, 9001}) {
      Context ctx = context(threads);
      const Tensor p = random_tensor({size}, 1), m = filled({size}, 0.0F), v = filled({size}, 0.0F),
                   copy({}, DType::BF16, {size});
      const Tensor alone = random_tensor({size}, 1), m1 = filled({size}, 0.0F), v1 = filled({size}, 0.0F);
      const Tensor grad = random_tensor({size}, 2);
      const ops::AdamW o{1e-2, 0.9, 0.95, 1e-8, 0.1, 1.0, 1};
      ops::adamw(ctx, p, copy, grad, m, v, o);
      ops::adamw(ctx, alone, {}, grad, m1, v1, o);
      EXPECT_EQ(floats(p), floats(alone));
      std::vector<Bf16> want;
      for (const float x : floats(p)) want.emplace_back(x);
      EXPECT_EQ(values_of<Bf16>(copy), want);
    }
}

TEST(AdamW, EqualsTheFormulaStepByStep) {
  const ref::AdamOptions usual{1e-3, 0.9, 0.95, 1e-8, 0.1, 1.0};
  for (const std::int64_t size : {0, 1, 2, 17, 9001}) check_adamw(size, usual, 1.0F);
  check_adamw(100, {0.1, 0.8, 0.999, 1e-3, 0.0, 0.25}, 1.0F);  // eps and the scale take part
  check_adamw(100, {0.1, 0.0, 0.0, 1e-8, 0.5, 2.0}, 1.0F);
  check_adamw(100, usual, 1e-6F);
  check_adamw(100, usual, 1e4F);
}

TEST(AdamW, FirstStepIsTheSignOfTheGradient) {
  // m / (1-b1) = g and v / (1-b2) = g^2: the step is lr sign(g), whatever the betas. Decay comes first, on its own.
  Context ctx = context();
  const Tensor p = filled({2}, 2.0F), g = tensor_of(std::vector<float>{0.3F, -5.0F}, {2});
  const Tensor m = filled({2}, 0.0F), v = filled({2}, 0.0F);
  ops::adamw(ctx, p, {}, g, m, v, op_options({0.01, 0.9, 0.95, 0.0, 0.1, 1.0}, 1));
  const double decayed = 2.0 - 0.01 * 0.1 * 2.0;
  EXPECT_TRUE(all_close(floats(p), {decayed - 0.01, decayed + 0.01}, rounding(2, 2.0)));
}

TEST(AdamW, ZeroGradientsWithoutDecayChangeNothing) {
  Context ctx = context();
  const Tensor p = random_tensor({9}, 1), zero = filled({9}, 0.0F), m = filled({9}, 0.0F), v = filled({9}, 0.0F);
  ops::adamw(ctx, p, {}, zero, m, v, op_options({0.01, 0.9, 0.95, 1e-8, 0.0, 1.0}, 1));
  EXPECT_EQ(floats(p), floats(random_tensor({9}, 1)));
}

double squares(const Tensor& x, int threads, double start = 0.0) {
  Context ctx = context(threads);
  const Tensor out = tensor_of(Vec{start}, {1});
  ops::sum_of_squares(ctx, out, x);
  return ref::doubles(out)[0];
}

TEST(SumOfSquares, IsExactToDoubleRounding) {
  // A square of a float32 is exact in double: only the additions round.
  for (const std::int64_t size : {0, 1, 2, 33, 1000, 100003}) {
    const Tensor x = random_tensor({size}, 1);
    const Vec v = ref::doubles(x);
    const double want = ref::dot(v, v) + 5.0;
    for (const int threads : {1, 2}) {
      EXPECT_NEAR(squares(x, threads, 5.0), want, static_cast<double>(size + 1) * 0x1p-53 * want) << size;
      EXPECT_EQ(squares(x, threads, 5.0), squares(x, threads, 5.0));
    }
  }
}

TEST(SumOfSquares, KeepsSmallTermsBesideLargeOnes) {
  std::vector<float> v(4097, 1.0F);
  v[0] = 1e6F;  // 1e12 + 1 is 1e12 in float32
  for (const int threads : {1, 2}) EXPECT_EQ(squares(tensor_of(v, {4097}), threads), 1e12 + 4096);
  EXPECT_EQ(squares(tensor_of(std::vector<float>{1e30F}, {1}), 1), std::pow(static_cast<double>(1e30F), 2));
}

TEST(SumOfSquares, GivesTheGlobalNorm) {
  // Of several tensors of any rank, added into one sum.
  Context ctx = context(2);
  const Tensor out({}, DType::F64, {1}), a = random_tensor({3, 5}, 1), b = random_tensor({2, 2, 7}, 2);
  ops::sum_of_squares(ctx, out, a);
  ops::sum_of_squares(ctx, out, b);
  const Vec va = ref::doubles(a), vb = ref::doubles(b);
  const double want = std::sqrt(ref::dot(va, va) + ref::dot(vb, vb));
  EXPECT_NEAR(std::sqrt(ref::doubles(out)[0]), want, 64 * 0x1p-53 * want);
}

}  // namespace
}  // namespace emox::test
