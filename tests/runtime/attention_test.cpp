// Causal attention inside segments against float64 loops, and its gradient against differences of these; with and
// without the rotation of queries and keys.
#include <cmath>

#include "runtime/ops/layers.h"
#include "tests/runtime/op_testing.h"

namespace emox::test {
namespace {

using ref::Ids;
using ref::Vec;

struct Case {
  Ids segments;
  int heads;
  std::int64_t dim;
  bool rotated = false;
  std::int64_t tokens() const { return segments.back(); }
  std::int64_t width() const { return heads * dim; }
  std::int64_t longest() const {
    std::int64_t most = 0;
    for (std::size_t i = 0; i + 1 < segments.size(); ++i)
      most = std::max<std::int64_t>(most, segments[i + 1] - segments[i]);
    return most;
  }
};

constexpr double kTheta = 100.0;
constexpr std::int64_t kPositions = 200;

// Neighbours that jump: a segment's tokens need not follow each other.
ref::Ids positions_of(const Case& c) {
  ref::Ids at;
  for (std::int64_t t = 0; t < c.tokens(); ++t) at.push_back(static_cast<std::int32_t>((t * 7 + 3) % kPositions));
  return at;
}

/// The operand of the ops, and what it points to.
struct Angles {
  explicit Angles(const Case& c) {
    if (!c.rotated) return;
    positions = ids_of(positions_of(c));
    cos = poison({kPositions, c.dim / 2}), sin = poison({kPositions, c.dim / 2});
    Context ctx = context();
    ops::rope_tables(ctx, cos, sin, kTheta);
  }
  ops::Rotation operand() const { return {positions, cos, sin}; }
  Tensor positions, cos, sin;
};

ref::Attention expected(const Case& c, const Vec& qkv) {
  return ref::attention(c.rotated ? ref::rope(qkv, positions_of(c), c.width(), c.heads, kTheta, false) : qkv,
                        c.segments, c.width(), c.heads);
}

// Of one score: dim products, each at most max|q| max|k|, and the scale. A rotation moves both by four roundings first.
double score_error(const Case& c, double size) {
  return rounding(static_cast<double>(c.dim) + 2 + (c.rotated ? 8 : 0),
                  size * size * std::sqrt(static_cast<double>(c.dim)));
}
// The largest number that enters a product: a rotated one is a sum of two.
double largest_factor(const Case& c, const Vec& x) { return ref::largest(x) * (c.rotated ? std::sqrt(2.0) : 1.0); }

// Of one softmax weight, relative: the error of its score and of the log-sum-exp, whose sum has `longest` terms.
double weight_error(const Case& c, double size) {
  return 2 * score_error(c, size) + rounding(static_cast<double>(c.longest()) + kFunction, 1.0);
}

void check(const Case& c, float size, unsigned seed) {
  SCOPED_TRACE(::testing::Message() << c.tokens() << " tokens, longest segment " << c.longest() << ", " << c.heads
                                    << " heads of " << c.dim << (c.rotated ? ", rotated" : "") << ", seed " << seed);
  const std::int64_t tokens = c.tokens(), width = c.width();
  const Tensor qkv = random_tensor({tokens, 3 * width}, seed, size), dout = random_tensor({tokens, width}, seed + 1);
  const Tensor segments = ids_of(c.segments);
  const Vec x = ref::doubles(qkv), vr = ref::doubles(dout);
  const ref::Attention want = expected(c, x);
  const Angles angles(c);
  const auto run = [&](Context& ctx) {
    const Tensor out = poison({tokens, width}), lse = poison({c.heads, tokens}), dqkv = poison({tokens, 3 * width});
    ops::attention(ctx, out, lse, qkv, segments, c.heads, angles.operand());
    ops::attention_backward(ctx, dqkv, dout, out, lse, qkv, segments, c.heads, angles.operand());
    return Outputs{floats(out), floats(lse), floats(dqkv)};
  };
  run_and_check(run, [&](const Outputs& got) {
    const double most = largest_factor(c, x), error = weight_error(c, most);
    EXPECT_TRUE(all_close(got[0], want.out, 2 * error * most));
    EXPECT_TRUE(all_close(got[1], want.lse, error + kEps * ref::largest(want.lse)));
    // dv sums weights (at most 1) times dout over the later tokens; dq and dk sum weights times (<dout, v> - <dout,
    // out>) times keys or queries: each of the terms is bounded, and off by the errors of a weight and of the two
    // products.
    const double terms = static_cast<double>(c.longest()),
                 product = static_cast<double>(c.dim) * ref::largest(vr) * most;
    const double magnitude = std::max({1.0, 2 * product * most, ref::largest(vr)});
    const double tolerance = (3 * error + rounding(static_cast<double>(c.dim) + terms + kFunction, 1.0)) * magnitude;
    EXPECT_TRUE(ref::is_gradient(
        got[2], [&](const Vec& v) { return ref::dot(vr, expected(c, v).out); }, x, tolerance * (c.rotated ? 2 : 1)));
  });
}

TEST(Attention, SegmentsOfEveryLength) {
  check({{0, 1}, 1, 1}, 1.0F, 1);
  check({{0, 1}, 2, 4}, 1.0F, 2);
  check({{0, 2}, 1, 2}, 1.0F, 3);
  check({{0, 5}, 3, 2}, 1.0F, 4);
  check({{0, 33}, 1, 4}, 1.0F, 5);
  check({{0, 1, 3, 8, 41}, 2, 4}, 1.0F, 6);
}

TEST(Attention, SegmentsLongerThanABlock) {
  check({{0, 150}, 1, 4}, 1.0F, 7);
  check({{0, 3, 133}, 2, 2}, 1.0F, 8);
}

TEST(Attention, BlockBoundaries) {
  // One token less, exactly, and one more than blocks of 16, 32 and 64.
  for (const std::int32_t length : {15, 16, 17, 31, 32, 63, 64, 65, 128, 129}) check({{0, length}, 1, 2}, 1.0F, 9);
}

TEST(Attention, RotatesQueriesAndKeys) {
  check({{0, 1}, 1, 2, true}, 1.0F, 41);
  check({{0, 1, 3, 8, 41}, 2, 4, true}, 1.0F, 42);
  for (const std::int32_t length : {15, 16, 17, 31, 32, 33, 64, 65}) check({{0, length}, 1, 2, true}, 1.0F, 43);
  check({{0, 0, 4, 4, 7, 7}, 2, 6, true}, 1.0F, 44);
  check({{0, 3, 9}, 1, 34, true}, 0.5F, 45);  // halves of a register and a tail
  check({{0, 7}, 2, 128, true}, 0.5F, 46);
  check({{0, 0}, 2, 4, true}, 1.0F, 47);
  check({{0}, 2, 4, true}, 1.0F, 48);
}

TEST(Attention, RefusesPositionsBeyondTheTable) {
  Context ctx = context();
  for (const std::int32_t position : {10, -1}) {
    const Tensor at = ids_of({position}), cos = filled({10, 2}, 1.0F), sin = filled({10, 2}, 0.0F);
    const ops::Rotation rotation{at, cos, sin};
    const Tensor qkv = filled({1, 12}, 1.0F), out = filled({1, 4}, 0.0F), lse = filled({1, 1}, 0.0F);
    expect_shape_error("attention", [&] { ops::attention(ctx, out, lse, qkv, ids_of({0, 1}), 1, rotation); });
    expect_shape_error("attention_backward", [&] {
      ops::attention_backward(ctx, filled({1, 12}, 0.0F), out, out, lse, qkv, ids_of({0, 1}), 1, rotation);
    });
  }
}

TEST(Attention, NoTokensAndEmptySegments) {
  check({{0, 0}, 2, 4}, 1.0F, 10);
  check({{0}, 2, 4}, 1.0F, 11);
  check({{0, 0, 4, 4, 7, 7}, 2, 3}, 1.0F, 12);
}

TEST(Attention, RandomSegments) {
  std::mt19937 gen(13);
  for (unsigned i = 0; i < 8; ++i) {
    const int heads = 1 + static_cast<int>(gen() % 3);
    const std::int64_t dim = any_size(gen, {1, 2, 8}, 9), tokens = any_size(gen, {1, 2, 20}, 40);
    check({any_segments(gen, tokens, 1 + static_cast<int>(gen() % 5)), heads, dim}, 1.0F, 20 + i);
  }
}

TEST(Attention, WideHeads) {
  check({{0, 2, 9}, 1, 64}, 0.5F, 14);
  check({{0, 7}, 2, 128}, 0.5F, 15);
}

// The forward pass alone on a longer sequence, where every element can be looked at.
TEST(Attention, ForwardOfManyBlocks) {
  const Case c{{0, 1, 290, 300, 700}, 2, 8};
  const Tensor qkv = random_tensor({c.tokens(), 3 * c.width()}, 3), segments = ids_of(c.segments);
  const ref::Attention want = ref::attention(ref::doubles(qkv), c.segments, c.width(), c.heads);
  const auto run = [&](Context& ctx) {
    const Tensor out = poison({c.tokens(), c.width()}), lse = poison({c.heads, c.tokens()});
    ops::attention(ctx, out, lse, qkv, segments, c.heads);
    return Outputs{floats(out), floats(lse)};
  };
  run_and_check(run, [&](const Outputs& got) {
    const double most = ref::largest(ref::doubles(qkv)), error = weight_error(c, most);
    EXPECT_TRUE(all_close(got[0], want.out, 2 * error * most));
    EXPECT_TRUE(all_close(got[1], want.lse, error + kEps * ref::largest(want.lse)));
  });
}

TEST(Attention, ASegmentSeesNothingOfTheOthers) {
  // Bit for bit: other documents must not even move the rounding.
  const std::int64_t width = 8;
  const Tensor qkv = random_tensor({60, 3 * width}, 1), dout = random_tensor({60, width}, 2);
  for (const int threads : {1, 2}) {
    Context ctx = context(threads);
    const Tensor out = poison({60, width}), lse = poison({2, 60}), dqkv = poison({60, 3 * width});
    const Tensor segments = ids_of({0, 13, 50, 60});
    ops::attention(ctx, out, lse, qkv, segments, 2);
    ops::attention_backward(ctx, dqkv, dout, out, lse, qkv, segments, 2);
    const Tensor out1 = poison({37, width}), lse1 = poison({2, 37}), dqkv1 = poison({37, 3 * width}),
                 own = ids_of({0, 37});
    ops::attention(ctx, out1, lse1, qkv.view().rows(13, 50), own, 2);
    ops::attention_backward(ctx, dqkv1, dout.view().rows(13, 50), out1, lse1, qkv.view().rows(13, 50), own, 2);
    EXPECT_TRUE(
        same_bits({floats(out.view().rows(13, 50)), floats(dqkv.view().rows(13, 50))}, {floats(out1), floats(dqkv1)}));
  }
}

TEST(Attention, RefusesSegmentsThatAreNone) {
  Context ctx = context();
  for (const Ids& segments : {Ids{0, 3}, Ids{1, 4}, Ids{0, 5}, Ids{0, 3, 2, 4}}) {
    expect_shape_error("attention", [&] {
      ops::attention(ctx, filled({4, 2}, 0.0F), filled({1, 4}, 0.0F), filled({4, 6}, 0.0F), ids_of(segments), 1);
    });
  }
}

TEST(Attention, LargeScoresDoNotOverflow) {
  // Scores of about +-1000: the softmax is a maximum, exp of a score would be infinite.
  const Case c{{0, 40}, 1, 4};
  const Tensor qkv = random_tensor({40, 12}, 5), segments = ids_of(c.segments);
  float* p = qkv.view().data<float>();
  for (std::int64_t t = 0; t < 40; ++t) {
    for (std::int64_t d = 0; d < 8; ++d) p[t * 12 + d] *= 30.0F;
  }
  const ref::Attention want = ref::attention(ref::doubles(qkv), c.segments, 4, 1);
  Context ctx = context();
  const Tensor out = poison({40, 4}), lse = poison({1, 40}), dqkv = poison({40, 12}), dout = random_tensor({40, 4}, 6);
  ops::attention(ctx, out, lse, qkv, segments, 1);
  ops::attention_backward(ctx, dqkv, dout, out, lse, qkv, segments, 1);
  const Vec q = ref::doubles(qkv);
  const double error = weight_error(c, ref::largest(q));
  EXPECT_TRUE(all_close(floats(out), want.out, 2 * error * 4.0));
  EXPECT_TRUE(all_close(floats(lse), want.lse, error + kEps * ref::largest(want.lse)));
  for (float v : floats(dqkv)) ASSERT_TRUE(std::isfinite(v));
}

}  // namespace
}  // namespace emox::test
