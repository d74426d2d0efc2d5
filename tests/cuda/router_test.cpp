// Router, pools, top-k and statistics: picks and pools are the CPU's, numbers agree to rounding.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <tuple>

#include "runtime/ops/moe.h"
#include "tests/cuda/device_test.h"

namespace emox::test {
namespace {

using Ids = std::vector<std::int32_t>;
using Flags = std::vector<std::uint8_t>;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();
/// A softmax of n terms whose exponents differ by up to `range`: rounding of the difference, of exp on both sides, and
/// of the sums in another order.
double softmax_tolerance(std::int64_t n, double range) {
  return 0x1.0p-23 * (8 + 2 * range + 0.5 * std::sqrt(static_cast<double>(n)));
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

template <typename T>
Tensor filled_with(T value, Shape shape) {
  return tensor_of(std::vector<T>(idx(shape.numel()), value), shape);
}
Tensor ids_of(const Ids& v) { return tensor_of(v, {static_cast<std::int64_t>(v.size())}); }

unsigned seed_of(std::mt19937& gen) { return static_cast<unsigned>(gen()); }

/// Documents of random lengths, many of one token, some empty, some long.
Ids some_segments(std::mt19937& gen, std::int64_t tokens, int kind) {
  Ids at{0};
  while (at.back() < tokens) {
    const int length = kind == 0 ? 1 : kind == 1 ? static_cast<int>(gen() % 5) : static_cast<int>(1 + gen() % 150);
    at.push_back(std::min(at.back() + length, static_cast<std::int32_t>(tokens)));
  }
  if (kind == 1) at.push_back(static_cast<std::int32_t>(tokens));  // an empty one at the end
  return at;
}

Tensor random_pools(std::mt19937& gen, std::int64_t documents, std::int64_t n, std::int64_t k) {
  Tensor scores = random_tensor({documents, n}, seed_of(gen)), pool({}, DType::U8, {documents, n});
  Ids sizes;
  for (std::int64_t i = 0; i < documents; ++i)
    sizes.push_back(static_cast<std::int32_t>(k + static_cast<std::int64_t>(gen()) % (n - k + 1)));
  Context ctx;
  ops::document_pools(ctx, pool, scores, ids_of(sizes));
  return pool;
}

struct Topk {
  Tensor p, lse, ids, gates;
  std::int64_t columns;
  ops::TopkResult result() const { return {p, lse, ids, gates, columns}; }
};
Topk host_topk(std::int64_t tokens, std::int64_t width, std::int64_t n, std::int64_t k) {
  return {filled_with(kNan, {tokens, width}), filled_with(kNan, {tokens}), filled_with(-7, {tokens, k}),
          filled_with(kNan, {tokens, k}), n};
}

class RouterTest : public DeviceTest {
 protected:
  Topk device_topk(std::int64_t tokens, std::int64_t width, std::int64_t n, std::int64_t k) {
    return {garbage(DType::F32, {tokens, width}), garbage(DType::F32, {tokens}), garbage(DType::I32, {tokens, k}),
            garbage(DType::F32, {tokens, k}), n};
  }
  Topk up(const Topk& h) {
    return {DeviceTest::up(h.p), DeviceTest::up(h.lse), DeviceTest::up(h.ids), DeviceTest::up(h.gates), h.columns};
  }
  using DeviceTest::up;
  /// Null stays null.
  Tensor up_or_null(const TensorView& x) { return x.null() ? Tensor() : up(x); }

  struct Inputs {
    Tensor logits, pool, segments, bias, free_tokens;  // may be null but for logits
    std::int64_t n, k;
    bool normalize;
  };
  /// The CPU's result, after the device's was compared with it.
  Topk check_topk(const Inputs& in, double tolerance) {
    const std::int64_t tokens = in.logits.view().dim(0), width = in.logits.view().dim(1);
    Topk want = host_topk(tokens, width, in.n, in.k);
    ops::masked_topk(cpu, want.result(), in.logits, in.pool, in.segments, in.bias, in.normalize, in.free_tokens);
    const Tensor logits = up(in.logits), pool = up_or_null(in.pool), segments = up_or_null(in.segments),
                 bias = up_or_null(in.bias), free_tokens = up_or_null(in.free_tokens);
    const auto run = [&] {
      Topk got = device_topk(tokens, width, in.n, in.k);
      ops::masked_topk(gpu, got.result(), logits, pool, segments, bias, in.normalize, free_tokens);
      return got;
    };
    const Topk got = run(), again = run();
    EXPECT_EQ(down<std::int32_t>(got.ids), values_of<std::int32_t>(want.ids));
    EXPECT_TRUE(agree(floats(got.p), floats(want.p), tolerance, 1e-37));  // padding: NaN on both sides
    EXPECT_TRUE(agree(floats(got.lse), floats(want.lse), tolerance, tolerance));
    EXPECT_TRUE(agree(floats(got.gates), floats(want.gates), 3 * tolerance, 1e-37));
    if (!in.pool.view().null() && in.free_tokens.view().null()) {
      const std::vector<float> p = floats(got.p), w = floats(want.p);
      for (std::size_t i = 0; i < p.size(); ++i)
        if (w[i] == 0.0F) {
          EXPECT_EQ(p[i], 0.0F) << i;
        }
    }
    EXPECT_TRUE(same_bits(floats(got.p), floats(again.p)) && same_bits(floats(got.lse), floats(again.lse)) &&
                same_bits(floats(got.gates), floats(again.gates)) &&
                down<std::int32_t>(got.ids) == down<std::int32_t>(again.ids));
    EXPECT_EQ(fault(), std::nullopt);
    return want;
  }

  void check_backward(const Topk& fwd, bool normalize, bool balanced, unsigned seed) {
    const std::int64_t tokens = fwd.p.view().dim(0), width = fwd.p.view().dim(1), k = fwd.ids.view().dim(1);
    const Tensor dgates = random_tensor({tokens, k}, seed), balance = random_tensor({fwd.columns}, seed + 1, 0.1F);
    const Tensor want = filled_with(kNan, {tokens, width});
    const TensorView host_balance = balanced ? balance.view() : TensorView();
    ops::masked_topk_backward(cpu, want, dgates, fwd.result(), host_balance, 0.01F, normalize);
    const Topk device = up(fwd);
    const Tensor device_dgates = up(dgates), device_balance = up_or_null(host_balance);
    const auto run = [&] {
      const Tensor dlogits = garbage(DType::F32, {tokens, width});
      ops::masked_topk_backward(gpu, dlogits, device_dgates, device.result(), device_balance, 0.01F, normalize);
      return floats(dlogits);
    };
    const std::vector<float> got = run();
    // Of p (dp - <p, dp>): <p, dp> has a rounding for every term that is not small, dp up to 1 / s of the gates' sum s.
    float least = 1.0F;
    if (normalize)
      for (std::int64_t t = 0; t < tokens; ++t) {
        float s = 0;
        for (std::int64_t j = 0; j < k; ++j)
          s += fwd.p.view().data<float>()[t * width + fwd.ids.view().data<std::int32_t>()[t * k + j]];
        least = std::min(least, s);
      }
    EXPECT_TRUE(agree(got, floats(want), 1e-5, 4e-6 / static_cast<double>(least)));
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t i = fwd.columns; i < width; ++i) EXPECT_EQ(got[idx(t * width + i)], 0.0F);
    EXPECT_TRUE(same_bits(got, run())) << "the same call gave other bits";
    EXPECT_EQ(fault(), std::nullopt);
  }

  void check_statistics(const Topk& fwd) {
    const Tensor counts = filled_with(std::int64_t{3}, {fwd.columns}), p_sum = filled_with(0.5, {fwd.columns});
    const Tensor z_sum = filled_with(0.25, {1});
    const Topk device = up(fwd);
    const auto run = [&] {
      const Tensor c = up(counts), p = up(p_sum), z = up(z_sum);
      ops::router_statistics(gpu, c, p, z, device.result());
      return std::tuple{down<std::int64_t>(c), down<double>(p), down<double>(z)};
    };
    const auto got = run();
    EXPECT_EQ(got, run()) << "the same call gave other bits";
    ops::router_statistics(cpu, counts, p_sum, z_sum, fwd.result());
    EXPECT_EQ(std::get<0>(got), values_of<std::int64_t>(counts));
    const std::vector<double> p = values_of<double>(p_sum), z = values_of<double>(z_sum);
    for (std::size_t i = 0; i < p.size(); ++i) EXPECT_NEAR(std::get<1>(got)[i], p[i], 1e-14 * p[i]) << i;
    EXPECT_NEAR(std::get<2>(got)[0], z[0], 1e-14 * z[0]);
    EXPECT_EQ(fault(), std::nullopt);
  }
};

struct Size {
  std::int64_t tokens, n, width, k;
};
// No columns, one, less than a warp, odd, all register sizes, more than registers hold; more picks than lanes.
constexpr Size kSizes[] = {{0, 5, 5, 2},      {3, 1, 1, 1},      {70, 4, 4, 3},     {33, 31, 32, 8},
                           {64, 64, 64, 3},   {50, 65, 72, 1},   {90, 127, 128, 8}, {200, 127, 127, 7},
                           {9, 200, 208, 33}, {20, 256, 256, 8}, {12, 512, 512, 8}, {5, 300, 300, 70},
                           {40, 530, 544, 8}, {6, 700, 701, 40}};

TEST_F(RouterTest, SoftmaxOfTheFirstColumns) {
  for (const Size& s : kSizes)
    for (const float scale : {1.0F, 50.0F}) {
      SCOPED_TRACE(::testing::Message() << s.tokens << " tokens, " << s.n << " of " << s.width << ", size " << scale);
      const Tensor logits = random_tensor({s.tokens, s.width}, 3, scale), device = up(logits);
      const Tensor want = filled_with(kNan, {s.tokens, s.width}), got = garbage(DType::F32, {s.tokens, s.width});
      ops::router_softmax(cpu, want, logits, s.n);
      ops::router_softmax(gpu, got, device, s.n);
      EXPECT_TRUE(agree(floats(got), floats(want), softmax_tolerance(s.n, 8 * scale), 1e-37));
    }
}

TEST_F(RouterTest, SoftmaxOfOddNumbers) {
  std::mt19937 gen(4);
  const float odd[] = {kNan, kInfinity, -kInfinity, 3e38F, -3e38F, 1e-40F, -0.0F, 1, 2};
  for (const std::int64_t n : {1, 5, 40, 530}) {
    Tensor logits = filled_with(-kInfinity, {60, n});
    for (std::int64_t t = 1; t < 60; ++t)  // the first row is -infinity
      for (std::int64_t i = 0; i < n; ++i)
        logits.view().data<float>()[t * n + i] = odd[static_cast<std::int64_t>(gen() % 9) < t % 9 ? gen() % 9 : 7];
    const Tensor want = filled_with(0.0F, {60, n}), got = garbage(DType::F32, {60, n}), device = up(logits);
    ops::router_softmax(cpu, want, logits);
    ops::router_softmax(gpu, got, device);
    EXPECT_TRUE(agree(floats(got), floats(want), softmax_tolerance(n, 2), 1e-37));
  }
}

TEST_F(RouterTest, ScoresAndPoolsOfDocuments) {
  std::mt19937 gen(5);
  for (const auto& [tokens, n, width] : {std::tuple{0, 5, 5},
                                         {1, 1, 1},
                                         {97, 4, 4},
                                         {400, 127, 128},
                                         {64, 31, 31},
                                         {65, 129, 136},
                                         {300, 512, 512},
                                         {96, 530, 530},
                                         {4200, 8, 8}})
    for (int kind = 0; kind < (tokens > 1000 ? 3 : 4); ++kind) {
      SCOPED_TRACE(::testing::Message() << tokens << " tokens, " << n << " of " << width << ", kind " << kind);
      const Ids at = kind == 3 ? Ids{0, 0, tokens, tokens} : some_segments(gen, tokens, kind);
      const auto documents = static_cast<std::int64_t>(at.size()) - 1;
      Tensor p = filled_with(kNan, {tokens, width}), logits = random_tensor({tokens, width}, seed_of(gen));
      if (tokens > 0) ops::router_softmax(cpu, p, logits, n);
      const Tensor want = filled_with(kNan, {documents, n}), got = garbage(DType::F32, {documents, n});
      const Tensor again = garbage(DType::F32, {documents, n}), device = up(p), segments = up(ids_of(at));
      ops::document_scores(cpu, want, p, ids_of(at));
      ops::document_scores(gpu, got, device, segments);
      ops::document_scores(gpu, again, device, segments);
      EXPECT_TRUE(agree(floats(got), floats(want), 0x1.0p-23, 0));  // f64 sums, rounded once
      EXPECT_TRUE(same_bits(floats(got), floats(again)));
      Ids sizes;
      for (std::int64_t d = 0; d < documents; ++d)
        sizes.push_back(static_cast<std::int32_t>(gen() % (n + 3)) - (d % 9 == 8 ? n : 0));
      const Tensor pool = filled_with(std::uint8_t{9}, {documents, n}),
                   device_pool = garbage(DType::U8, {documents, n});
      ops::document_pools(cpu, pool, want, ids_of(sizes));
      ops::document_pools(gpu, device_pool, got, up(ids_of(sizes)));
      EXPECT_EQ(down<std::uint8_t>(device_pool), values_of<std::uint8_t>(pool));
    }
}

// Multiples of 1/64: every sum is exact, whatever its order, and most experts share theirs with others.
TEST_F(RouterTest, EqualScoresGoToTheLowestIndex) {
  std::mt19937 gen(6);
  for (const std::int64_t n : {3, 127, 200, 512, 600}) {
    const Ids at{0, 1, 2, 30, 200, 200, 301};
    std::vector<float> p;
    for (std::int64_t i = 0; i < 301 * n; ++i) p.push_back(static_cast<float>(gen() % 3) / 64.0F);
    const Tensor host = tensor_of(p, {301, n}), want = filled_with(kNan, {6, n}), got = garbage(DType::F32, {6, n});
    ops::document_scores(cpu, want, host, ids_of(at));
    ops::document_scores(gpu, got, up(host), up(ids_of(at)));
    EXPECT_EQ(floats(got), floats(want));
    for (int round = 0; round < 5; ++round) {
      Ids sizes;
      for (int d = 0; d < 6; ++d) sizes.push_back(1 + static_cast<std::int32_t>(gen() % n));
      const Tensor pool({}, DType::U8, {6, n}), device_pool = garbage(DType::U8, {6, n});
      ops::document_pools(cpu, pool, want, ids_of(sizes));
      ops::document_pools(gpu, device_pool, got, up(ids_of(sizes)));
      EXPECT_EQ(down<std::uint8_t>(device_pool), values_of<std::uint8_t>(pool)) << n;
    }
  }
}

TEST_F(RouterTest, PoolsOfOddScores) {
  std::mt19937 gen(7);
  const float odd[] = {kNan, -kNan, kInfinity, -kInfinity, 3e38F, -3e38F, 1e-40F, -1e-40F, 0, -0.0F, 1};
  for (const std::int64_t n : {1, 5, 40, 127, 530}) {
    std::vector<float> scores;
    Ids sizes;
    for (std::int64_t i = 0; i < 50 * n; ++i) scores.push_back(odd[gen() % 11]);
    for (int d = 0; d < 50; ++d) sizes.push_back(static_cast<std::int32_t>(gen() % (n + 2)));
    const Tensor host = tensor_of(scores, {50, n}), pool({}, DType::U8, {50, n}), got = garbage(DType::U8, {50, n});
    ops::document_pools(cpu, pool, host, ids_of(sizes));
    ops::document_pools(gpu, got, up(host), up(ids_of(sizes)));
    EXPECT_EQ(down<std::uint8_t>(got), values_of<std::uint8_t>(pool)) << n;
  }
}

TEST_F(RouterTest, TopkBackwardAndStatisticsEqualTheCpu) {
  std::mt19937 gen(8);
  for (const Size& s : kSizes)
    for (int variant = 0; variant < 5; ++variant) {  // no pool; pool; bias; pool, bias; pool, bias, free tokens
      if (s.tokens * s.n > 20000 && variant % 2 != 0) continue;
      SCOPED_TRACE(::testing::Message() << s.tokens << " tokens, " << s.k << " of " << s.n << ", variant " << variant);
      Inputs in{random_tensor({s.tokens, s.width}, seed_of(gen)), {}, {}, {}, {}, s.n, s.k, variant % 2 != 0};
      if (variant == 1 || variant > 2) {
        const Ids at = some_segments(gen, s.tokens, static_cast<int>(gen() % 3));
        in.segments = ids_of(at);
        in.pool = random_pools(gen, static_cast<std::int64_t>(at.size()) - 1, s.n, s.k);
      }
      if (variant >= 2) in.bias = random_tensor({s.n}, seed_of(gen), variant == 2 ? 1.0F : 0.02F);
      if (variant == 4) {
        in.free_tokens = filled_with(std::uint8_t{0}, {s.tokens});
        for (std::int64_t t = 0; t < s.tokens; ++t) in.free_tokens.view().data<std::uint8_t>()[t] = gen() % 2;
      }
      const Topk fwd = check_topk(in, softmax_tolerance(s.n, 8));
      check_backward(fwd, in.normalize, variant % 2 == 0, 11);
      check_statistics(fwd);
    }
}

// Any bits are logits when a run diverges.
TEST_F(RouterTest, TopkOfOddNumbers) {
  std::mt19937 gen(9);
  const float odd[] = {kNan, -kNan, kInfinity, -kInfinity, 3e38F, -3e38F, 1e-40F, 0, -0.0F, 1};
  for (int round = 0; round < 60; ++round) {
    const std::int64_t n = round % 10 == 9 ? 520 : 1 + static_cast<std::int64_t>(gen() % 70);
    const std::int64_t k = 1 + static_cast<std::int64_t>(gen()) % n, tokens = 1 + static_cast<std::int64_t>(gen() % 5);
    SCOPED_TRACE(::testing::Message() << "round " << round << ": top " << k << " of " << n);
    const auto any = [&](Shape shape) {
      Tensor x({}, DType::F32, shape);
      for (std::int64_t i = 0; i < shape.numel(); ++i) x.view().data<float>()[i] = odd[gen() % 10];
      return x;
    };
    Inputs in{any({tokens, n}), {}, {}, {}, {}, n, k, round % 3 == 0};
    if (round % 5 != 0)
      in.segments = ids_of({0, static_cast<std::int32_t>(tokens)}), in.pool = random_pools(gen, 1, n, k);
    if (round % 2 == 1) in.bias = any({n});
    check_topk(in, softmax_tolerance(n, 8));
  }
}

TEST_F(RouterTest, EqualLogitsGoToTheLowestIndex) {
  std::mt19937 gen(10);
  for (const std::int64_t n : {4, 127, 512, 600}) {
    std::vector<float> z, bias;
    for (std::int64_t i = 0; i < 30 * n; ++i) z.push_back(static_cast<float>(gen() % 3));
    for (std::int64_t i = 0; i < n; ++i) bias.push_back(static_cast<float>(gen() % 2) * 4.0F);
    Inputs in{tensor_of(z, {30, n}), random_pools(gen, 3, n, 3), ids_of({0, 7, 8, 30}), {}, {}, n, 3, true};
    check_topk(in, softmax_tolerance(n, 2));
    in.bias = tensor_of(bias, {n});
    check_topk(in, softmax_tolerance(n, 2));
  }
}

TEST_F(RouterTest, NoPicks) {
  const Tensor logits = random_tensor({5, 40}, 3), device = up(logits), want = filled_with(0.0F, {5, 40});
  const Topk got = device_topk(5, 40, 40, 0);
  ops::router_softmax(cpu, want, logits);
  ops::masked_topk(gpu, got.result(), device, {}, {}, {}, true);
  EXPECT_TRUE(agree(floats(got.p), floats(want), softmax_tolerance(40, 8), 0));
  EXPECT_EQ(fault(), std::nullopt);
}

TEST_F(RouterTest, TooSmallAPoolIsAFault) {
  Inputs in{
      random_tensor({6, 40}, 1), filled_with(std::uint8_t{1}, {4, 40}), ids_of({0, 2, 2, 5, 6}), {}, {}, 40, 3, true};
  for (const std::int64_t document : {0, 1, 3}) {  // the second has no tokens
    Tensor pool = filled_with(std::uint8_t{1}, {4, 40});
    for (int i = 0; i < 38; ++i) pool.view().data<std::uint8_t>()[document * 40 + i] = 0;
    Topk got = device_topk(6, 40, 40, 3);
    ops::masked_topk(gpu, got.result(), up(in.logits), up(pool), up(in.segments), {}, false);
    EXPECT_EQ(fault(), (ops::Fault{ops::Op::masked_topk, 3, document}));
    for (const std::int32_t id : down<std::int32_t>(got.ids)) EXPECT_TRUE(id >= 0 && id < 40) << id;
    EXPECT_ANY_THROW(ops::masked_topk(cpu, host_topk(6, 40, 40, 3).result(), in.logits, pool, in.segments, {}, false));
  }
}

TEST_F(RouterTest, WrongPicksAreFaults) {
  for (const std::int32_t wrong : {-1, 20, 1 << 30}) {
    Inputs in{random_tensor({5, 20}, 2), {}, {}, {}, {}, 20, 4, true};
    Topk fwd = check_topk(in, 1e-5);
    fwd.ids.view().data<std::int32_t>()[9] = wrong;
    const Topk device = up(fwd);
    const Tensor dlogits = garbage(DType::F32, {5, 20}), dgates = up(random_tensor({5, 4}, 3));
    ops::masked_topk_backward(gpu, dlogits, dgates, device.result(), {}, 0.0F, true);
    EXPECT_EQ(fault(), (ops::Fault{ops::Op::masked_topk_backward, 3, 9}));
    const Tensor counts = up(filled_with(std::int64_t{0}, {20})), sum = up(filled_with(0.0, {20})),
                 z = up(filled_with(0.0, {1}));
    ops::router_statistics(gpu, counts, sum, z, device.result());
    EXPECT_EQ(fault(), (ops::Fault{ops::Op::router_statistics, 4, 9}));
    const Tensor total = up(filled_with(std::int64_t{0}, {1}));
    ops::document_experts(gpu, total, device.ids, up(ids_of({0, 5})), 20);
    EXPECT_EQ(fault(), (ops::Fault{ops::Op::document_experts, 2, 9}));
  }
}

TEST_F(RouterTest, ManyTokensOfStatistics) {  // more than the windows have room for at their least size
  Topk fwd{filled_with(0.25F, {17000, 4}), filled_with(0.5F, {17000}), filled_with(2, {17000, 1}),
           filled_with(0.25F, {17000, 1}), 4};
  for (int t = 0; t < 17000; ++t) fwd.p.view().data<float>()[4 * t] = 1.0F / static_cast<float>(t + 1);
  check_statistics(fwd);
}

TEST_F(RouterTest, ExpertsOfDocuments) {
  std::mt19937 gen(12);
  for (const auto& [tokens, k, experts] :
       {std::tuple{0, 2, 5}, {1, 1, 1}, {70, 3, 31}, {500, 8, 127}, {333, 2, 512}, {300, 8, 32}, {40, 8, 1000}})
    for (int kind = 0; kind < 4; ++kind) {
      const Ids at = kind == 3 ? Ids{0, tokens} : some_segments(gen, tokens, kind);
      Ids ids;
      for (int i = 0; i < tokens * k; ++i) ids.push_back(static_cast<std::int32_t>(gen() % experts));
      const Tensor picks = tensor_of(ids, {tokens, k}), want = filled_with(std::int64_t{5}, {1}), got = up(want);
      ops::document_experts(gpu, got, up(picks), up(ids_of(at)), experts);
      ops::document_experts(cpu, want, picks, ids_of(at), experts);
      EXPECT_EQ(down<std::int64_t>(got), values_of<std::int64_t>(want)) << tokens << " tokens, kind " << kind;
      EXPECT_EQ(fault(), std::nullopt);
    }
}

}  // namespace
}  // namespace emox::test
