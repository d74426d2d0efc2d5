// Fill, copy, add, host copies; the truncated normal against its closed form.
#include "runtime/ops/basic.h"

#include <cmath>
#include <numbers>

#include "tests/runtime/op_testing.h"

namespace emox::test {
namespace {

using ref::Vec;

const std::initializer_list<Shape> kShapes = {Shape{0},    Shape{1},          Shape{0, 3}, Shape{7},
                                              Shape{3, 5}, Shape{2, 3, 4, 5}, Shape{70001}};

TEST(BasicOps, FillCopyAddZero) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(shape.str());
    const Tensor x = random_tensor(shape, 1), y = random_tensor(shape, 2);
    std::vector<float> sum = floats(y);
    for (std::size_t i = 0; i < sum.size(); ++i)
      sum[i] += floats(x).size() == sum.size() ? x.view().data<float>()[i] : 0.0F;
    const auto run = [&](Context& ctx) {
      const Tensor full = poison(shape), copied = poison(shape), added = tensor_of(floats(y), shape),
                   zeroed = poison(shape);
      ops::fill(ctx, full, -1.5F);
      ops::copy(ctx, copied, x);
      ops::add(ctx, added, x);
      ops::zero(ctx, zeroed);
      return Outputs{floats(full), floats(copied), floats(added), floats(zeroed)};
    };
    run_and_check(run, [&](const Outputs& got) {
      EXPECT_EQ(got[0], std::vector<float>(sum.size(), -1.5F));
      EXPECT_EQ(got[1], floats(x));
      EXPECT_EQ(got[2], sum);  // one rounding, the same one
      EXPECT_EQ(got[3], std::vector<float>(sum.size(), 0.0F));
    });
  }
}

template <typename T>
void copies_and_zeroes() {
  Context ctx = context(2);
  const Tensor x = tensor_of(std::vector<T>{T{1}, T{2}, T{3}, T{4}, T{5}, T{6}}, {6}), y({}, dtype_of<T>(), {2, 3});
  ops::copy(ctx, y, x);
  EXPECT_EQ(values_of<T>(y), values_of<T>(x));
  EXPECT_EQ(ops::to_host<T>(ctx, y), values_of<T>(x));
  const std::vector<T> more{T{9}, T{8}, T{7}, T{6}, T{5}, T{4}};
  ops::copy_from_host(ctx, y, more.data());
  EXPECT_EQ(values_of<T>(y), more);
  ops::zero(ctx, y);
  EXPECT_EQ(values_of<T>(y), std::vector<T>(6));
}

TEST(BasicOps, CopyEveryType) {
  copies_and_zeroes<float>();
  copies_and_zeroes<double>();
  copies_and_zeroes<std::int32_t>();
  copies_and_zeroes<std::int64_t>();
  copies_and_zeroes<std::uint8_t>();
}

TEST(BasicOps, ToHostChecksTheType) {
  Context ctx = context();
  EXPECT_THROW((void)ops::to_host<double>(ctx, filled({2}, 1.0F)), ShapeError);
}

double density(double x) { return std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi); }
double distribution(double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); }

Vec draw(std::int64_t count, double std, double bound, std::uint64_t seed = 1, std::uint32_t stream = 0) {
  Context ctx = context(2);
  const Tensor x = poison({count});
  ops::random_truncated_normal(ctx, x, Philox(seed, RngPurpose::Test), stream, 0, std, bound);
  return ref::doubles(x);
}

double mean_of(const Vec& v, int power) {
  double s = 0;
  for (double x : v) s += std::pow(x, power);
  return s / static_cast<double>(v.size());
}

TEST(TruncatedNormal, HasTheMomentsOfTheClosedForm) {
  constexpr std::int64_t n = 200000;
  for (const double cut : {3.0, 1.0, 0.1}) {  // bound / std
    const double std = 0.02, bound = cut * std, inside = 2 * distribution(cut) - 1;
    const Vec v = draw(n, std, bound);
    EXPECT_LE(ref::largest(v), bound * (1 + kEps));
    // Var = s^2 (1 - 2 c phi(c) / Z); the fourth moment follows from the recursion E x^4 = 3 E x^2 - 2 c^3 phi(c) / Z.
    const double second = 1 - 2 * cut * density(cut) / inside,
                 fourth = 3 * second - 2 * std::pow(cut, 3) * density(cut) / inside;
    // Five standard errors of each mean.
    EXPECT_NEAR(mean_of(v, 1), 0.0, 5 * std * std::sqrt(second / n)) << cut;
    EXPECT_NEAR(mean_of(v, 2), std * std * second, 5 * std * std * std::sqrt((fourth - second * second) / n)) << cut;
    EXPECT_NEAR(mean_of(v, 3), 0.0, 5 * std::pow(std, 3) * std::sqrt(std::pow(cut, 2) * fourth / n)) << cut;
  }
}

TEST(TruncatedNormal, FollowsTheDistribution) {
  // Kolmogorov-Smirnov: P(D > 1.95 / sqrt(n)) = 0.001.
  constexpr std::int64_t n = 100000;
  for (const double cut : {3.0, 1.0}) {
    Vec v = draw(n, 2.0, 2.0 * cut, 3);
    std::sort(v.begin(), v.end());
    double distance = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      const double f = (distribution(v[i] / 2.0) - distribution(-cut)) / (2 * distribution(cut) - 1);
      distance =
          std::max({distance, std::abs(f - static_cast<double>(i) / n), std::abs(f - static_cast<double>(i + 1) / n)});
    }
    EXPECT_LT(distance, 1.95 / std::sqrt(static_cast<double>(n)));
  }
}

TEST(TruncatedNormal, NeighboursAndStreamsAreIndependent) {
  constexpr std::int64_t n = 100000;
  const Vec a = draw(n, 1.0, 3.0), b = draw(n, 1.0, 3.0, 1, 1), c = draw(n, 1.0, 3.0, 2, 0);
  const double five_errors = 5 / std::sqrt(static_cast<double>(n));
  EXPECT_LT(std::abs(ref::dot(a, b)) / n, five_errors);
  EXPECT_LT(std::abs(ref::dot(a, c)) / n, five_errors);
  for (const std::int64_t lag : {1, 2, 3, 4}) {
    const Vec left(a.begin(), a.end() - lag), right(a.begin() + lag, a.end());
    EXPECT_LT(std::abs(ref::dot(left, right)) / n, five_errors) << lag;
  }
}

// Beyond kStreamedCopy the copy goes another way, whatever the alignment, and writes nothing beside its target.
TEST(Copy, LargeOnesFromAnywhereToAnywhere) {
  constexpr std::int64_t kBytes = (std::int64_t{16} << 20) + 77, kMargin = 200;
  std::vector<std::uint8_t> from(kBytes + kMargin);
  for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<std::uint8_t>(i * 2654435761U >> 13U);
  for (const int threads : {1, 2})
    for (const std::int64_t source : {0, 1, 64})
      for (const std::int64_t target : {0, 3, 63, 64}) {
        Context ctx = context(threads);
        std::vector<std::uint8_t> to(kBytes + kMargin, 0xA5);
        ops::copy(ctx, TensorView(to.data() + target, DType::U8, {kBytes}),
                  TensorView(from.data() + source, DType::U8, {kBytes}));
        std::vector<std::uint8_t> expected(to.size(), 0xA5);
        std::copy_n(from.begin() + source, kBytes, expected.begin() + target);
        EXPECT_TRUE(to == expected) << threads << " threads, from " << source << " to " << target;
      }
}

TEST(TruncatedNormal, AShardIsASliceOfTheWhole) {
  const Philox philox(7, RngPurpose::Init);
  for (const int threads : {1, 2}) {
    Context ctx = context(threads);
    const Tensor whole = poison({101, 7});
    ops::random_truncated_normal(ctx, whole, philox, 5, 0, 0.02, 0.06);
    for (const std::int64_t begin : {0, 1, 2, 3, 50, 101}) {
      const Tensor shard = poison({101 - begin, 7});
      Context other = context(3 - threads);
      ops::random_truncated_normal(other, shard, philox, 5, begin * 7, 0.02, 0.06);
      EXPECT_EQ(floats(shard), floats(whole.view().rows(begin, 101))) << begin;
    }
  }
}

TEST(TruncatedNormal, ElementsBeyond32BitsDiffer) {
  const Philox philox(7, RngPurpose::Init);
  Context ctx = context();
  const std::int64_t far = std::int64_t{1} << 32;
  const Tensor near_zero = poison({64}), beyond = poison({64}), across = poison({64});
  ops::random_truncated_normal(ctx, near_zero, philox, 0, 0, 1.0, 3.0);
  ops::random_truncated_normal(ctx, beyond, philox, 0, far, 1.0, 3.0);
  ops::random_truncated_normal(ctx, across, philox, 0, far - 32, 1.0, 3.0);
  EXPECT_NE(floats(near_zero), floats(beyond));
  EXPECT_EQ(floats(across.view().rows(32, 64)), floats(beyond.view().rows(0, 32)));
}

}  // namespace
}  // namespace emox::test
