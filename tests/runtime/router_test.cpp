// Router, document pools and balance statistics against float64 loops and the worked example of the specification.
#include <cmath>
#include <set>

#include "runtime/core/idx.h"
#include "tests/runtime/router_testing.h"

namespace emox::test {
namespace {

using ref::Flags;
using ref::Ids;
using ref::Vec;

TEST(RouterSoftmax, EqualsTheFormula) {
  std::mt19937 gen(1);
  for (const std::int64_t tokens : {0, 1, 2, 9, 130}) {
    for (const float size : {1.0F, 100.0F}) {
      const std::int64_t n = any_size(gen, {1, 2, 7, 127}, 70);
      SCOPED_TRACE(::testing::Message() << tokens << " tokens, " << n << " experts, logits of size " << size);
      const Tensor logits = random_tensor({tokens, n}, 2, size);
      const auto run = [&](Context& ctx) {
        const Tensor p = poison({tokens, n});
        ops::router_softmax(ctx, p, logits);
        return Outputs{floats(p)};
      };
      run_and_check(run, [&](const Outputs& got) {
        const Vec z = ref::doubles(logits);
        EXPECT_TRUE(all_close(got[0], ref::softmax(z, n), softmax_error(n, ref::largest(z))));
      });
    }
  }
}

TEST(DocumentScores, AreSumsOverTheDocument) {
  std::mt19937 gen(2);
  for (const std::int64_t tokens : {0, 1, 2, 33, 200}) {
    const std::int64_t n = any_size(gen, {1, 7, 127}, 50);
    const Ids segments = any_segments(gen, tokens, 4);
    const Tensor p = random_tensor({tokens, n}, 3);
    const auto run = [&](Context& ctx) {
      const Tensor scores = poison({4, n});
      ops::document_scores(ctx, scores, p, ids_of(segments));
      return Outputs{floats(scores)};
    };
    const Vec v = ref::doubles(p), most = ref::document_scores(ref::absolute(v), segments, n);
    run_and_check(run, [&](const Outputs& got) {
      EXPECT_TRUE(all_close(got[0], ref::document_scores(v, segments, n),
                            rounding(static_cast<double>(tokens) + 1, ref::largest(most))));
    });
  }
}

TEST(DocumentPools, KeepTheLargestScores) {
  std::mt19937 gen(3);
  for (const std::int64_t docs : {0, 1, 2, 11, 40}) {
    for (const std::int64_t n : {1, 2, 7, 127}) {
      SCOPED_TRACE(::testing::Message() << docs << " documents, " << n << " experts");
      // Scores of few values: many ties.
      std::vector<float> scores;
      for (std::int64_t i = 0; i < docs * n; ++i) scores.push_back(static_cast<float>(gen() % 5) * 0.25F);
      Ids sizes;
      for (std::int64_t i = 0; i < docs; ++i) sizes.push_back(1 + static_cast<std::int32_t>(gen() % (n + 3)));
      const Flags want = ref::document_pools(Vec(scores.begin(), scores.end()), sizes, n);
      for (const int threads : {1, 2}) EXPECT_EQ(pools(tensor_of(scores, {docs, n}), sizes, threads), want);
    }
  }
}

TEST(DocumentPools, TiesGoToTheLowestIndex) {
  const Tensor equal = filled({3, 5}, 0.5F);
  EXPECT_EQ(pools(equal, {1, 3, 4}), (Flags{1, 0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 0}));
  const Tensor mixed = tensor_of(std::vector<float>{1, 2, 1, 2, 1}, {1, 5});
  EXPECT_EQ(pools(mixed, {1}), (Flags{0, 1, 0, 0, 0}));
  EXPECT_EQ(pools(mixed, {3}), (Flags{1, 1, 0, 1, 0}));
  EXPECT_EQ(pools(mixed, {4}), (Flags{1, 1, 1, 1, 0}));
}

TEST(DocumentPools, SizesFromTheNumberOfExpertsOnKeepAll) {
  const Tensor scores = random_tensor({3, 4}, 1);
  EXPECT_EQ(pools(scores, {4, 5, 1000}), Flags(12, 1));
}

Flags any_flags(std::mt19937& gen, std::int64_t count) {
  Flags flags;
  for (std::int64_t i = 0; i < count; ++i) flags.push_back(static_cast<std::uint8_t>(gen() % 2));
  return flags;
}

TEST(MaskedTopk, EqualsTheReference) {
  std::mt19937 gen(4);
  for (const std::int64_t tokens : {0, 1, 2, 30, 90}) {
    for (int variant = 0; variant < 12; ++variant) {  // from 8 on: pools, of which some tokens are free
      const std::int64_t n = any_size(gen, {1, 2, 16, 127}, 80);
      ref::TopkInputs in{.n = n, .k = 1 + static_cast<std::int64_t>(gen() % n), .normalize = (variant & 1) != 0};
      SCOPED_TRACE(::testing::Message() << tokens << " tokens, top " << in.k << " of " << n << ", variant " << variant);
      const Tensor logits = apart_logits(tokens, n, 5 + static_cast<unsigned>(variant));
      if (variant & 10) {
        in.segments = any_segments(gen, tokens, 3);
        const Tensor scores = random_tensor({3, n}, 6);
        const auto any = [&] { return static_cast<std::int32_t>(in.k + static_cast<std::int64_t>(gen() % n)); };
        in.pool = ref::document_pools(ref::doubles(scores), {any(), any(), any()}, n);
      }
      if (variant & 8) in.free_tokens = any_flags(gen, tokens);
      // A bias that decides: its steps are larger than every p.
      if (variant & 4 || variant == 10) {
        for (std::int64_t i = 0; i < n; ++i) in.bias.push_back(static_cast<double>((i * 7) % n) * 2.0);
      }
      std::vector<float> bias(in.bias.begin(), in.bias.end());
      const ref::Topk want = ref::masked_topk(ref::doubles(logits), in);
      const auto run = [&](Context& ctx) {
        const TopkTensors r(tokens, n, in.k);
        const Tensor pool = tensor_of(in.pool, {in.pool.empty() ? 0 : 3, n}), segments = ids_of(in.segments);
        ops::masked_topk(ctx, r.result(), logits, in.pool.empty() ? TensorView() : pool.view(),
                         in.pool.empty() ? TensorView() : segments.view(),
                         bias.empty() ? TensorView() : tensor_of(bias, {n}).view(), in.normalize,
                         in.free_tokens.empty() ? TensorView() : tensor_of(in.free_tokens, {tokens}).view());
        EXPECT_EQ(values_of<std::int32_t>(r.ids), want.ids);
        return Outputs{floats(r.p), floats(r.lse), floats(r.gates)};
      };
      run_and_check(run, [&](const Outputs& got) {
        const double size = ref::largest(ref::doubles(logits)), error = softmax_error(n, size);
        EXPECT_TRUE(all_close(got[0], want.p, error));
        EXPECT_TRUE(all_close(got[1], want.lse, error * std::max(1.0, ref::largest(want.lse))));
        EXPECT_TRUE(all_close(got[2], want.gates, 2 * error + rounding(static_cast<double>(in.k), 1.0)));
        for (std::size_t i = 0; i < want.p.size(); ++i) {
          ASSERT_TRUE(want.p[i] != 0.0 || got[0][i] == 0.0F) << "outside the pool p must be exactly 0";
        }
      });
    }
  }
}

TEST(MaskedTopk, TiesGoToTheLowestIndex) {
  EXPECT_EQ(picks({1, 1, 1, 1}, 3, {}, {}), (Ids{0, 1, 2}));
  EXPECT_EQ(picks({1, 2, 1, 2}, 3, {}, {}), (Ids{1, 3, 0}));
  EXPECT_EQ(picks({1, 2, 1, 2, 2}, 3, {1, 0, 1, 1, 1}, {}), (Ids{3, 4, 0}));
  EXPECT_EQ(picks({1, 1, 1, 1}, 2, {}, {0, 0.5F, 0, 0.5F}), (Ids{1, 3}));
}

TEST(MaskedTopk, OrdersByTheLogitsThatGiveEqualProbabilities) {
  EXPECT_EQ(picks({0.0F, 1e-9F, 0.0F}, 2, {}, {}), (Ids{1, 0}));          // p is 1/3 each in float32
  EXPECT_EQ(picks({0.0F, -300.0F, -200.0F}, 3, {}, {}), (Ids{0, 2, 1}));  // p underflows to 0 for two
}

TEST(MaskedTopk, NothingOutsideThePoolIsPicked) {
  // Not for a large bias, not when everything else has p = 0, not when the logit outside is the largest.
  EXPECT_EQ(picks({5, 1, 0, 1}, 2, {0, 1, 0, 1}, {100, 0, 100, 0}), (Ids{1, 3}));
  EXPECT_EQ(picks({9, 0, -300, -400}, 3, {0, 1, 1, 1}, {}), (Ids{1, 2, 3}));
  EXPECT_EQ(picks({9, 0, -300, -400}, 3, {0, 1, 1, 1}, {0, -1, -2, -3}), (Ids{1, 2, 3}));
}

TEST(MaskedTopk, TheBiasChoosesButDoesNotWeigh) {
  std::vector<float> gates;
  EXPECT_EQ(picks({2, 1, 0}, 2, {}, {0, 0, 3}, &gates), (Ids{2, 0}));
  const Vec p = ref::softmax({2, 1, 0}, 3);
  EXPECT_TRUE(all_close(gates, {p[2], p[0]}, softmax_error(3, 2)));
}

// A logit outside the pool must not reach the softmax, however large.
TEST(MaskedTopk, LogitsOutsideThePoolHaveNoInfluence) {
  const TopkTensors r(1, 3, 1);
  Context ctx = context();
  ops::masked_topk(ctx, r.result(), tensor_of(std::vector<float>{1e30F, 1.0F, 0.0F}, {1, 3}),
                   tensor_of(Flags{0, 1, 1}, {1, 3}), ids_of({0, 1}), TensorView(), false);
  const Vec p = ref::softmax({1, 0}, 2);
  EXPECT_TRUE(all_close(floats(r.p), {0.0, p[0], p[1]}, softmax_error(2, 1)));
  EXPECT_TRUE(all_close(floats(r.lse), {std::log(std::exp(1.0) + 1.0)}, softmax_error(2, 2)));
}

// A free token sees what it would see without pools, bit for bit; the others do not see it.
TEST(MaskedTopk, AFreeTokenHasNoPool) {
  constexpr std::int64_t kTokens = 40, kExperts = 12, kPicks = 3;
  std::mt19937 gen(11);
  const Tensor logits = apart_logits(kTokens, kExperts, 12), segments = ids_of({0, 17, 17, 40});
  const Tensor pool = tensor_of(
      ref::document_pools(ref::doubles(random_tensor({3, kExperts}, 13)), {3, 5, 4}, kExperts), {3, kExperts});
  const Flags flags = any_flags(gen, kTokens);
  for (const int threads : {1, 2}) {
    Context ctx = context(threads);
    const auto run = [&](const TensorView& mask, const TensorView& free_tokens) {
      const TopkTensors r(kTokens, kExperts, kPicks);
      ops::masked_topk(ctx, r.result(), logits, mask, mask.null() ? TensorView() : segments.view(), TensorView(), false,
                       free_tokens);
      return std::tuple{floats(r.p), floats(r.lse), values_of<std::int32_t>(r.ids), floats(r.gates)};
    };
    const auto inside = run(pool, {}), without = run({}, {});
    EXPECT_EQ(run(pool, tensor_of(Flags(kTokens, 0), {kTokens})), inside);
    EXPECT_EQ(run(pool, tensor_of(Flags(kTokens, 1), {kTokens})), without);
    const auto some = run(pool, tensor_of(flags, {kTokens}));
    const auto expect_rows = [&](const auto& got, const auto& free, const auto& bound) {
      const std::size_t width = got.size() / kTokens;
      for (std::size_t i = 0; i < got.size(); ++i) EXPECT_EQ(got[i], (flags[i / width] != 0 ? free : bound)[i]) << i;
    };
    expect_rows(std::get<0>(some), std::get<0>(without), std::get<0>(inside));
    expect_rows(std::get<1>(some), std::get<1>(without), std::get<1>(inside));
    expect_rows(std::get<2>(some), std::get<2>(without), std::get<2>(inside));
    expect_rows(std::get<3>(some), std::get<3>(without), std::get<3>(inside));
  }
}

TEST(MaskedTopkBackward, IsTheGradient) {
  std::mt19937 gen(5);
  for (const std::int64_t tokens : {0, 1, 5, 40}) {
    for (unsigned variant = 0; variant < 20; ++variant) {  // from 16 on: pools, of which some tokens are free
      const std::int64_t n = 2 + static_cast<std::int64_t>(gen() % 11);
      ref::TopkInputs in{.n = n, .k = 1 + static_cast<std::int64_t>(gen() % (n - 1)), .normalize = (variant & 1) != 0};
      SCOPED_TRACE(::testing::Message() << tokens << " tokens, top " << in.k << " of " << n << ", variant " << variant);
      if (variant & 18) {
        in.segments = any_segments(gen, tokens, 2);
        in.pool = ref::document_pools(ref::doubles(random_tensor({2, n}, variant)),
                                      {static_cast<std::int32_t>(in.k), static_cast<std::int32_t>(n - 1)}, n);
      }
      const Tensor logits = apart_logits(tokens, n, 60 + variant), dgates = random_tensor({tokens, in.k}, 7);
      const bool balanced = (variant & 20) != 0;
      if (variant >= 16) in.free_tokens = any_flags(gen, tokens);
      const Tensor balance = balanced ? random_tensor({n}, 8) : Tensor();
      const float z_grad = variant & 24 ? 0.3F : 0.0F;
      const Vec z = ref::doubles(logits), dg = ref::doubles(dgates), db = balanced ? ref::doubles(balance) : Vec(n);
      const Ids fixed = ref::masked_topk(z, in).ids;
      const auto loss = [&](const Vec& v) {
        const ref::Topk r = ref::masked_topk(v, in, fixed);
        double sum = ref::dot(dg, r.gates);
        for (std::size_t i = 0; i < r.p.size(); ++i) sum += db[i % idx(n)] * r.p[i];
        for (double l : r.lse) sum += static_cast<double>(z_grad) * l * l;
        return sum;
      };
      const auto run = [&](Context& ctx) {
        const TopkTensors r(tokens, n, in.k);
        const Tensor pool = in.pool.empty() ? Tensor() : tensor_of(in.pool, {2, n}), segments = ids_of(in.segments);
        const Tensor dlogits = poison({tokens, n});
        ops::masked_topk(ctx, r.result(), logits, pool, in.pool.empty() ? TensorView() : segments.view(), TensorView(),
                         in.normalize,
                         in.free_tokens.empty() ? TensorView() : tensor_of(in.free_tokens, {tokens}).view());
        ops::masked_topk_backward(ctx, dlogits, dgates, r.result(), balance, z_grad, in.normalize);
        return Outputs{floats(dlogits)};
      };
      run_and_check(run, [&](const Outputs& got) {
        const ref::Topk r = ref::masked_topk(z, in);
        double mass = 1.0;  // of the picks: the gradient of normalised gates is divided by it
        for (std::int64_t t = 0; in.normalize && t < tokens; ++t) {
          double sum = 0;
          for (std::int64_t j = 0; j < in.k; ++j) sum += r.p[t * n + r.ids[t * in.k + j]];
          mass = std::min(mass, sum);
        }
        const double size = 2 * static_cast<double>(in.k) * ref::largest(dg) / mass + 2 * ref::largest(db) +
                            static_cast<double>(2 * z_grad) * ref::largest(r.lse);
        EXPECT_TRUE(ref::is_gradient(got[0], loss, z,
                                     (3 * softmax_error(n, ref::largest(z)) + rounding(kFunction, 1.0)) * size));
        for (std::size_t i = 0; i < r.p.size(); ++i) {
          ASSERT_TRUE(r.p[i] != 0.0 || got[0][i] == 0.0F) << "outside the pool there is no gradient";
        }
      });
    }
  }
}

TEST(RouterStatistics, AddCountsAndSums) {
  for (const std::int64_t tokens : {0, 1, 70}) {
    const std::int64_t n = 6, k = 2;
    const ref::TopkInputs in{.n = n, .k = k};
    const Tensor logits = apart_logits(tokens, n, 9);
    const ref::Topk want = ref::masked_topk(ref::doubles(logits), in);
    for (const int threads : {1, 2}) {
      Context ctx = context(threads);
      const TopkTensors r(tokens, n, k);
      ops::masked_topk(ctx, r.result(), logits, TensorView(), TensorView(), TensorView(), false);
      const Tensor counts = tensor_of(std::vector<std::int64_t>(n, 100), {n}), p_sum = tensor_of(Vec(n, 10.0), {n});
      const Tensor z_sum = tensor_of(Vec{5.0}, {1});
      ops::router_statistics(ctx, counts, p_sum, z_sum, r.result());
      std::vector<std::int64_t> picked(n, 100);
      for (std::int32_t i : want.ids) ++picked[i];
      EXPECT_EQ(values_of<std::int64_t>(counts), picked);
      // Sums in double of the float32 p and lse of the forward pass: exact but for double rounding.
      Vec p(n, 10.0);
      double z = 5.0;
      const std::vector<float> got_p = floats(r.p);
      for (std::size_t i = 0; i < got_p.size(); ++i) p[i % n] += static_cast<double>(got_p[i]);
      for (float l : floats(r.lse)) z += static_cast<double>(l) * static_cast<double>(l);
      const double double_rounding = static_cast<double>(tokens + 2) * 0x1p-53;
      for (std::int64_t i = 0; i < n; ++i) EXPECT_NEAR(values_of<double>(p_sum)[i], p[i], double_rounding * p[i]);
      EXPECT_NEAR(values_of<double>(z_sum)[0], z, double_rounding * z);
    }
  }
}

TEST(DocumentExperts, CountsDifferentExpertsOfEachDocument) {
  std::mt19937 gen(6);
  for (const std::int64_t tokens : {0, 1, 2, 40}) {
    const std::int64_t experts = 9, k = 3;
    const Ids segments = any_segments(gen, tokens, 5);
    Ids ids;
    for (std::int64_t i = 0; i < tokens * k; ++i) ids.push_back(static_cast<std::int32_t>(gen() % experts));
    std::int64_t want = 1000;
    for (std::size_t s = 0; s + 1 < segments.size(); ++s) {
      want += static_cast<std::int64_t>(
          std::set<std::int32_t>(ids.begin() + segments[s] * k, ids.begin() + segments[s + 1] * k).size());
    }
    const Tensor sum = tensor_of(std::vector<std::int64_t>{1000}, {1});
    Context ctx = context();
    ops::document_experts(ctx, sum, tensor_of(ids, {tokens, k}), ids_of(segments), experts);
    EXPECT_EQ(values_of<std::int64_t>(sum)[0], want) << tokens;
  }
}

}  // namespace
}  // namespace emox::test
