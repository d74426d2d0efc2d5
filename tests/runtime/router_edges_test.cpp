// The router where numbers end: NaN and infinities, pools as small as the picks and larger than the layer, documents of
// one token.
#include <cmath>
#include <limits>
#include <set>

#include "tests/runtime/router_testing.h"

namespace emox::test {
namespace {

using ref::Flags;
using ref::Ids;
using ref::Vec;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();

TEST(MaskedTopk, NotANumberIsTheLastChoice) {
  EXPECT_EQ(picks({kNan, 1, kNan, 2}, 3, {}, {}), (Ids{3, 1, 0}));
  EXPECT_EQ(picks({5, kNan, 7, kNan, 0}, 2, {0, 1, 0, 1, 1}, {}), (Ids{4, 1}));
  EXPECT_EQ(picks({-kInfinity, 5, -kInfinity, 5}, 2, {1, 0, 1, 0}, {}), (Ids{0, 2}));
  EXPECT_EQ(picks({5, kNan, 7, kNan, 0}, 3, {0, 1, 0, 1, 1}, {9, 9, 9, 9, 9}), (Ids{1, 3, 4}));  // p is NaN throughout
}

TEST(MaskedTopk, NoPickIsANumberOfPicks) {
  EXPECT_EQ(picks({3, 1, 2}, 0, {}, {}), Ids{});
  EXPECT_EQ(picks({3, 1, 2}, 0, {1, 0, 1}, {}), Ids{});
}

// Any bits are logits when a run diverges: picks stay different members of the pool, and the gates say what happened.
TEST(MaskedTopk, PicksStayInsideThePoolWhateverTheNumbers) {
  std::mt19937 gen(12);
  const std::vector<float> odd{kNan, -kNan, kInfinity, -kInfinity, 3e38F, -3e38F, 1e-40F, 0, -0.0F, 1};
  for (int round = 0; round < 300; ++round) {
    const std::int64_t n = 1 + static_cast<std::int64_t>(gen() % 70), k = 1 + static_cast<std::int64_t>(gen() % n);
    const std::int64_t tokens = 1 + static_cast<std::int64_t>(gen() % 5);
    SCOPED_TRACE(::testing::Message() << "round " << round << ": top " << k << " of " << n);
    std::vector<float> z, scores, bias;
    for (std::int64_t i = 0; i < tokens * n; ++i) z.push_back(odd[gen() % odd.size()]);
    for (std::int64_t i = 0; i < n; ++i) scores.push_back(odd[gen() % odd.size()]);
    for (std::int64_t i = 0; i < n; ++i) bias.push_back(odd[gen() % odd.size()]);
    const auto size = static_cast<std::int32_t>(k + static_cast<std::int64_t>(gen() % (n - k + 2)));
    const Flags pool = pools(tensor_of(scores, {1, n}), {size});
    EXPECT_EQ(std::count(pool.begin(), pool.end(), 1), std::min<std::int64_t>(size, n));
    const TopkTensors r(tokens, n, k);
    Context ctx = context();
    ops::masked_topk(ctx, r.result(), tensor_of(z, {tokens, n}), tensor_of(pool, {1, n}),
                     ids_of({0, static_cast<std::int32_t>(tokens)}),
                     round % 2 == 0 ? TensorView() : tensor_of(bias, {n}).view(), round % 3 == 0);
    const Ids ids = values_of<std::int32_t>(r.ids);
    const std::vector<float> gates = floats(r.gates);
    for (std::int64_t t = 0; t < tokens; ++t) {
      std::set<std::int32_t> different;
      for (std::int64_t j = t * k; j < (t + 1) * k; ++j) {
        ASSERT_TRUE(ids[j] >= 0 && ids[j] < n && pool[ids[j]] == 1) << ids[j];
        different.insert(ids[j]);
      }
      EXPECT_EQ(static_cast<std::int64_t>(different.size()), k);
      bool finite = true;
      for (std::int64_t i = 0; i < n; ++i) finite &= pool[i] == 0 || std::isfinite(z[t * n + i]) || z[t * n + i] < 0;
      if (!finite) {
        EXPECT_TRUE(std::isnan(gates[t * k])) << "a gate that hides the fault: " << gates[t * k];
      }
    }
  }
}

TEST(DocumentPools, NotANumberIsTheLastMember) {
  EXPECT_EQ(pools(tensor_of(std::vector<float>{kNan, 1, kNan, 2, 0}, {1, 5}), {3}), (Flags{0, 1, 0, 1, 1}));
  EXPECT_EQ(pools(filled({1, 6}, kNan), {2}), (Flags{1, 1, 0, 0, 0, 0}));
}

// The reference is the loops of the formulas: pools as large as the picks, documents of one token, pools of all and
// more.
TEST(Router, AtItsEdgesEqualsTheReference) {
  std::mt19937 gen(13);
  for (int round = 0; round < 200; ++round) {
    const std::int64_t n = 1 + static_cast<std::int64_t>(gen() % 20), k = 1 + static_cast<std::int64_t>(gen() % n);
    const std::int64_t tokens = static_cast<std::int64_t>(gen() % 12);
    ref::TopkInputs in{.n = n, .k = k};
    in.segments.push_back(0);
    while (in.segments.back() < tokens)  // mostly of one token, some empty
      in.segments.push_back(
          std::min(static_cast<std::int32_t>(tokens), in.segments.back() + static_cast<std::int32_t>(gen() % 3)));
    const auto docs = static_cast<std::int64_t>(in.segments.size()) - 1;
    SCOPED_TRACE(::testing::Message() << "round " << round << ": " << tokens << " tokens, " << docs
                                      << " documents, top " << k << " of " << n);
    Ids sizes;
    for (std::int64_t d = 0; d < docs; ++d) {
      const std::int64_t edge[] = {k, n, n + 1, 1 << 16, std::min(k + 1, n)};
      sizes.push_back(static_cast<std::int32_t>(edge[gen() % 5]));
    }
    const Tensor logits = apart_logits(tokens, n, 100 + static_cast<unsigned>(round));
    const Vec z = ref::doubles(logits);
    in.pool = ref::document_pools(ref::document_scores(ref::softmax(z, n), in.segments, n), sizes, n);
    const ref::Topk want = ref::masked_topk(z, in);
    for (const int threads : {1, 2}) {
      Context ctx = context(threads);
      const TopkTensors r(tokens, n, k);
      const Tensor p = poison({tokens, n}), scores = poison({docs, n}), pool = tensor_of(Flags(docs * n, 9), {docs, n});
      ops::router_softmax(ctx, p, logits);
      ops::document_scores(ctx, scores, p, ids_of(in.segments));
      ops::document_pools(ctx, pool, scores, ids_of(sizes));
      EXPECT_EQ(values_of<std::uint8_t>(pool), in.pool);
      ops::masked_topk(ctx, r.result(), logits, pool, ids_of(in.segments), TensorView(), false);
      EXPECT_EQ(values_of<std::int32_t>(r.ids), want.ids);
      EXPECT_TRUE(all_close(floats(r.gates), want.gates, 2 * softmax_error(n, ref::largest(z))));
    }
  }
}

}  // namespace
}  // namespace emox::test
