// Attention and its gradient on a device against the CPU: f32, and bf16 on the tensor cores.
//
// bf16: the CPU is given the same numbers (rotated queries and keys too are rounded to bf16 before they meet), and for
// the gradient the device's out and lse. What remains beside f32 sums is one rounding, relatively at most kLow, of each
// softmax weight and each score's gradient, and one of each result. So with terms t_j the difference is at most
// kLow (sum_j |t_j| + |result|): the sums of absolute terms are made here by plain loops, element by element.
#include <algorithm>
#include <cmath>

#include "runtime/core/bf16.h"
#include "runtime/ops/layers.h"
#include "tests/cuda/device_test.h"

namespace emox::test {
namespace {

using Ids = std::vector<std::int32_t>;
using Floats = std::vector<float>;
constexpr double kLow = kBf16Epsilon / 2;
constexpr std::int64_t kPositions = 64;

double largest(const Floats& v) {
  double most = 0;
  for (const float x : v) most = std::max(most, std::abs(static_cast<double>(x)));
  return most;
}

struct Case {
  Ids segments;
  int heads;
  std::int64_t dim;
  bool rotated = false;
  float size = 1.0F;
  std::int64_t tokens() const { return segments.back(); }
  std::int64_t width() const { return heads * dim; }
};

Ids segments_of(const Ids& lengths) {
  Ids at{0};
  for (const auto n : lengths) at.push_back(at.back() + n);
  return at;
}
const Ids kMixed = segments_of({1, 7, 64, 65, 130, 1, 1, 1, 7, 2});

/// Of every result the sum of the absolute values of its terms.
struct Magnitudes {
  std::vector<double> out, dqkv;
};
Magnitudes magnitudes(const Case& c, const Floats& qkv, const Floats& out, const Floats& lse, const Floats& dout) {
  const std::int64_t width = c.width(), dim = c.dim, tokens = c.tokens();
  const double scale = 1 / std::sqrt(static_cast<double>(dim));
  Magnitudes m{std::vector<double>(idx(tokens * width)), std::vector<double>(idx(tokens * 3 * width))};
  const auto dot = [&](const float* a, const float* b) {
    double sum = 0;
    for (std::int64_t d = 0; d < dim; ++d) sum += static_cast<double>(a[d]) * b[d];
    return sum;
  };
  for (std::size_t segment = 0; segment + 1 < c.segments.size(); ++segment)
    for (std::int64_t i = c.segments[segment]; i < c.segments[segment + 1]; ++i)
      for (std::int64_t h = 0; h < c.heads; ++h) {
        const std::int64_t at = i * width + h * dim, q = 3 * i * width + h * dim;
        const double delta = dot(&dout[idx(at)], &out[idx(at)]);
        for (std::int64_t j = c.segments[segment]; j <= i; ++j) {
          const std::int64_t k = (3 * j + 1) * width + h * dim, v = k + width;
          const double weight = std::exp(scale * dot(&qkv[idx(q)], &qkv[idx(k)]) - lse[idx(h * tokens + i)]);
          const double grad = scale * std::abs(weight * (dot(&dout[idx(at)], &qkv[idx(v)]) - delta));
          for (std::int64_t d = 0; d < dim; ++d) {
            m.out[idx(at + d)] += weight * std::abs(qkv[idx(v + d)]);
            m.dqkv[idx(q + d)] += grad * std::abs(qkv[idx(k + d)]);
            m.dqkv[idx(k + d)] += grad * std::abs(qkv[idx(q + d)]);
            m.dqkv[idx(v + d)] += weight * std::abs(dout[idx(at + d)]);
          }
        }
      }
  return m;
}

class AttentionTest : public DeviceTest {
 protected:
  struct Angles {
    Tensor positions, cos, sin;
    ops::Rotation operand() const { return {positions, cos, sin}; }
  };
  Angles angles_of(const Case& c) {
    if (!c.rotated) return {};
    Ids at;  // neighbours that jump
    for (std::int64_t t = 0; t < c.tokens(); ++t) at.push_back(static_cast<std::int32_t>((t * 7 + 3) % kPositions));
    Angles a{tensor_of(at, {c.tokens()}), Tensor({}, DType::F32, {kPositions, c.dim / 2}),
             Tensor({}, DType::F32, {kPositions, c.dim / 2})};
    ops::rope_tables(cpu, a.cos, a.sin, 100.0);
    return a;
  }
  Angles up_angles(const Case& c, const Angles& a) {
    if (!c.rotated) return {};
    return {up(a.positions), up(a.cos), up(a.sin)};
  }
  /// Queries and keys of rows of `parts` widths turned; keys only if they are there.
  static void turn(const Case& c, const Angles& a, Floats& qkv, float sign) {
    const std::int64_t half = c.dim / 2;
    for (std::int64_t t = 0; c.rotated && t < c.tokens(); ++t)
      for (std::int64_t head = 0; head < 2 * c.heads; ++head)
        for (std::int64_t d = 0; d < half; ++d) {
          const std::int64_t angle = a.positions.view().data<std::int32_t>()[t] * half + d;
          const float cos = a.cos.view().data<float>()[angle], sin = sign * a.sin.view().data<float>()[angle];
          float &u = qkv[idx(3 * t * c.width() + head * c.dim + d)], &v = *(&u + half);
          const float x = u;
          u = x * cos - v * sin;
          v = v * cos + x * sin;
        }
  }

  struct Results {
    Floats out, lse, dqkv;
    friend bool operator==(const Results&, const Results&) = default;
  };
  Results run_device(Context& ctx, const Case& c, const Tensor& qkv, const Tensor& dout, const Angles& a) {
    const bool low = ctx.activations == DType::BF16;
    const std::int64_t tokens = c.tokens(), width = c.width();
    const Tensor segments = up(tensor_of(c.segments, {static_cast<std::int64_t>(c.segments.size())}));
    const Tensor x = low ? up_bf16(qkv) : up(qkv), g = low ? up_bf16(dout) : up(dout);
    const Angles dev = up_angles(c, a);
    const Tensor out = garbage(ctx.activations, {tokens, width}), lse = garbage(DType::F32, {c.heads, tokens}),
                 dqkv = garbage(ctx.activations, {tokens, 3 * width});
    ops::attention(ctx, out, lse, x, segments, c.heads, dev.operand());
    ops::attention_backward(ctx, dqkv, g, out, lse, x, segments, c.heads, dev.operand());
    return {floats(out), floats(lse), floats(dqkv)};
  }
  void check(const Case& c, unsigned seed) {
    SCOPED_TRACE(::testing::Message() << c.tokens() << " tokens, " << c.segments.size() - 1 << " segments, " << c.heads
                                      << " heads of " << c.dim << (c.rotated ? ", rotated" : "") << ", seed " << seed);
    const std::int64_t tokens = c.tokens(), width = c.width();
    const Tensor qkv = random_tensor({tokens, 3 * width}, seed, c.size),
                 dout = random_tensor({tokens, width}, seed + 1);
    const Angles a = angles_of(c);
    check_f32(c, qkv, dout, a);
    check_bf16(c, qkv, dout, a);
  }
  void check_f32(const Case& c, const Tensor& qkv, const Tensor& dout, const Angles& a) {
    SCOPED_TRACE("f32");
    const std::int64_t tokens = c.tokens(), width = c.width();
    const Tensor segments = tensor_of(c.segments, {static_cast<std::int64_t>(c.segments.size())});
    const Tensor out({}, DType::F32, {tokens, width}), lse({}, DType::F32, {c.heads, tokens}),
        dqkv({}, DType::F32, {tokens, 3 * width});
    ops::attention(cpu, out, lse, qkv, segments, c.heads, a.operand());
    ops::attention_backward(cpu, dqkv, dout, out, lse, qkv, segments, c.heads, a.operand());
    const Results got = run_device(gpu, c, qkv, dout, a);
    // Scores are sums of `dim` products, so off by a few roundings of their size, and weights relatively by that.
    const double weight = 5e-7 * (1 + c.size * c.size * std::sqrt(static_cast<double>(c.dim)) / 4);
    const double v = largest(floats(qkv)), g = largest(floats(dout));
    EXPECT_TRUE(agree(got.out, floats(out), 0, weight * v));
    EXPECT_TRUE(agree(got.lse, floats(lse), 0, weight + 0x1.0p-22 * largest(floats(lse))));
    EXPECT_TRUE(agree(got.dqkv, floats(dqkv), 0, weight * std::max({g, largest(floats(dqkv)), v * g})));
    EXPECT_TRUE(got == run_device(gpu, c, qkv, dout, a)) << "the same call gave other bits";
  }
  void check_bf16(const Case& c, const Tensor& qkv, const Tensor& dout, const Angles& a) {
    SCOPED_TRACE("bf16");
    const std::int64_t tokens = c.tokens(), width = c.width();
    const Results got = run_device(gpu_bf16, c, qkv, dout, a);
    EXPECT_TRUE(got == run_device(gpu_bf16, c, qkv, dout, a)) << "the same call gave other bits";
    Floats turned = floats(rounded(qkv));
    turn(c, a, turned, 1.0F);
    const Tensor x = rounded(tensor_of(turned, {tokens, 3 * width})), g = rounded(dout);
    const Tensor segments = tensor_of(c.segments, {static_cast<std::int64_t>(c.segments.size())});
    const Tensor out({}, DType::F32, {tokens, width}), lse({}, DType::F32, {c.heads, tokens}),
        dqkv({}, DType::F32, {tokens, 3 * width});
    ops::attention(cpu, out, lse, x, segments, c.heads);
    const Tensor its_out = tensor_of(got.out, {tokens, width}), its_lse = tensor_of(got.lse, {c.heads, tokens});
    ops::attention_backward(cpu, dqkv, g, its_out, its_lse, x, segments, c.heads);
    Floats want = floats(dqkv);
    Magnitudes m = magnitudes(c, floats(x), got.out, got.lse, floats(g));
    spread(c, m.dqkv);
    turn(c, a, want, -1.0F);
    // A rotation's f32 sums may round to the bf16 number beside it, which moves all weights of a row a little.
    const double slack = 1.02, f32 = 5e-6;
    std::vector<double> terms(m.out);
    EXPECT_TRUE(near(got.out, floats(out), terms, slack, f32 * largest(floats(x))));
    EXPECT_TRUE(agree(got.lse, floats(lse), 0, f32 * (1 + largest(floats(lse)))));
    EXPECT_TRUE(near(got.dqkv, want, m.dqkv, slack, f32 * std::max(1.0, largest(want))));
  }
  /// Turning back mixes the halves of a head: an error of either enters both, by |cos| + |sin|.
  static void spread(const Case& c, std::vector<double>& dqkv) {
    for (std::int64_t t = 0; c.rotated && t < c.tokens(); ++t)
      for (std::int64_t head = 0; head < 2 * c.heads; ++head)
        for (std::int64_t d = 0; d < c.dim / 2; ++d) {
          double &u = dqkv[idx(3 * t * c.width() + head * c.dim + d)], &v = *(&u + c.dim / 2);
          u = v = std::hypot(u, v);
        }
  }
  static ::testing::AssertionResult near(const Floats& got, const Floats& want, const std::vector<double>& terms,
                                         double slack, double absolute) {
    double worst = 0;
    std::size_t at = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
      const double off = std::abs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
      const double ratio = off / (slack * kLow * (terms[i] + std::abs(static_cast<double>(want[i]))) + absolute);
      if (!(ratio <= worst)) worst = std::isnan(ratio) ? INFINITY : ratio, at = i;
    }
    if (worst <= 1) return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << "element " << at << " is " << got[at] << ", expected " << want[at] << ": "
                                         << worst << " times the tolerance";
  }
};

TEST_F(AttentionTest, DocumentsOfEveryLength) {
  unsigned seed = 1;
  for (const std::int32_t length : {1, 2, 7, 16, 31, 32, 33, 63, 64, 65, 127, 128, 129, 130, 200})
    check({{0, length}, 1, 16, length % 2 == 0}, seed++);
}

TEST_F(AttentionTest, DocumentsMixed) {
  for (const bool rotated : {false, true})
    for (const std::int64_t dim : {4, 16, 32, 64, 128})
      check({kMixed, dim <= 16 ? 3 : dim <= 64 ? 2 : 1, dim, rotated}, 20);
}

TEST_F(AttentionTest, HeadsOfEveryWidth) {
  const Ids segments = segments_of({3, 34, 1, 12});
  // Tensor cores take multiples of 8 up to 128, turned ones in whole pieces if they are multiples of 16.
  for (const std::int64_t dim : {1, 5, 8, 40, 72, 136}) check({segments, 2, dim, false, 0.7F}, 30);
  for (const std::int64_t dim : {2, 8, 20, 24, 48, 96, 256}) check({segments, 1, dim, true, 0.7F}, 31);
}

TEST_F(AttentionTest, NoTokensAndEmptySegments) {
  for (const bool rotated : {false, true}) {
    check({{0}, 2, 16, rotated}, 40);
    check({{0, 0}, 2, 16, rotated}, 41);
    check({{0, 0, 4, 4, 7, 7}, 2, 16, rotated}, 42);
  }
}

TEST_F(AttentionTest, ThousandsOfTokensEachAlone) {
  const std::int64_t tokens = 300, width = 2 * 32;
  Ids lengths(idx(tokens), 1);
  const Case c{segments_of(lengths), 2, 32};
  const Tensor qkv = rounded(random_tensor({tokens, 3 * width}, 50)), dout = random_tensor({tokens, width}, 51);
  for (Context* ctx : {&gpu, &gpu_bf16}) {
    const Results got = run_device(*ctx, c, qkv, dout, {});
    const Floats x = floats(qkv);
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t d = 0; d < width; ++d)
        ASSERT_EQ(got.out[idx(t * width + d)], x[idx((3 * t + 2) * width + d)]) << "one weight, which is 1";
  }
}

TEST_F(AttentionTest, ADocumentSeesNothingOfTheOthers) {
  // Bit for bit: what the others hold must not even move a rounding.
  const Case c{segments_of({30, 50, 21}), 2, 32, true};
  const std::int64_t width = c.width(), begin = 30, end = 80;
  const Tensor qkv = random_tensor({c.tokens(), 3 * width}, 60), dout = random_tensor({c.tokens(), width}, 61);
  Floats other_qkv = floats(random_tensor({c.tokens(), 3 * width}, 62, 5.0F)), other_dout = floats(dout);
  std::copy_n(&floats(qkv)[idx(begin * 3 * width)], (end - begin) * 3 * width, &other_qkv[idx(begin * 3 * width)]);
  for (std::size_t i = 0; i < other_dout.size(); ++i)
    if (i < idx(begin * width) || i >= idx(end * width)) other_dout[i] *= -3;
  const Angles a = angles_of(c);
  for (Context* ctx : {&gpu, &gpu_bf16}) {
    const Results one = run_device(*ctx, c, qkv, dout, a);
    const Results two = run_device(*ctx, c, tensor_of(other_qkv, {c.tokens(), 3 * width}),
                                   tensor_of(other_dout, {c.tokens(), width}), a);
    const auto own = [&](const Floats& v, std::int64_t row) {
      return Floats(v.begin() + begin * row, v.begin() + end * row);
    };
    EXPECT_TRUE(own(one.out, width) == own(two.out, width));
    EXPECT_TRUE(own(one.dqkv, 3 * width) == own(two.dqkv, 3 * width));
    EXPECT_FALSE(one.out == two.out);
  }
}

TEST_F(AttentionTest, LargeScoresDoNotOverflow) {
  // Scores of about +-1000: the softmax is a maximum, exp of a score would be infinite.
  const Case c{{0, 70}, 1, 16};
  Floats x = floats(random_tensor({70, 48}, 70));
  for (std::size_t i = 0; i < x.size(); ++i)
    if (i % 48 < 32) x[i] *= 30.0F;
  const Tensor qkv = rounded(tensor_of(x, {70, 48})), dout = random_tensor({70, 16}, 71);
  const Tensor out({}, DType::F32, {70, 16}), lse({}, DType::F32, {1, 70});
  ops::attention(cpu, out, lse, qkv, tensor_of<std::int32_t>({0, 70}, {2}), 1);
  for (Context* ctx : {&gpu, &gpu_bf16}) {
    const Results got = run_device(*ctx, c, qkv, dout, {});
    // f32 scores of a size of thousands: off by about 1e-3, and so are weights.
    EXPECT_TRUE(agree(got.lse, floats(lse), 1e-6, 0));
    EXPECT_TRUE(agree(got.out, floats(out), 0, (ctx == &gpu ? 2e-3 : 2e-3 + 2 * kLow) * largest(floats(qkv)) / 30));
    for (const float d : got.dqkv) ASSERT_TRUE(std::isfinite(d));
  }
}

}  // namespace
}  // namespace emox::test
