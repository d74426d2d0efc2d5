// What easy_ep sums, against float64 loops.
#include "runtime/ops/expert_scores.h"

#include <cmath>

#include "runtime/core/idx.h"
#include "tests/runtime/op_testing.h"

namespace emox::test {
namespace {

using ref::Ids;
using ref::Vec;

TEST(TranslateIds, ReplacesEach) {
  Context ctx;
  const Tensor ids = tensor_of(Ids{2, 0, 1, 2, 2, 0}, {3, 2}), table = tensor_of(Ids{4, 9, 17}, {3});
  ops::translate_ids(ctx, ids, table);
  EXPECT_EQ(values_of<std::int32_t>(ids), (Ids{17, 4, 9, 17, 17, 4}));
  EXPECT_THROW(ops::translate_ids(ctx, ids, table), ShapeError);  // 17 is in no table of three
}

TEST(RowNorms, EqualTheFormula) {
  std::mt19937 gen(3);
  for (const std::int64_t rows : {0, 1, 7, 200}) {
    const std::int64_t width = any_size(gen, {1, 2, 64}, 90);
    const Tensor x = random_tensor({rows, width}, 4, 10.0F);
    const auto run = [&](Context& ctx) {
      const Tensor norms = poison({rows});
      ops::row_norms(ctx, norms, x);
      return Outputs{floats(norms)};
    };
    run_and_check(run, [&](const Outputs& got) {
      const Vec v = ref::doubles(x);
      Vec want(idx(rows), 0.0);
      for (std::size_t i = 0; i < v.size(); ++i) want[i / idx(width)] += v[i] * v[i];
      for (double& w : want) w = std::sqrt(w);
      EXPECT_TRUE(all_close(got[0], want, rounding(1, ref::largest(want))));
    });
  }
}

TEST(OutputChange, IsTheAngleThatTheOutputTurns) {
  Context ctx;
  // h + y: h twice as long, across, opposite, and h = -y.
  const Tensor h = tensor_of<float>({3, 4, 1, 0, 1, 0, 1, 1}, {4, 2}),
               y = tensor_of<float>({3, 4, -1, 2, -3, 0, -1, -1}, {4, 2});
  const Tensor change({}, DType::F64, {4});
  ops::output_change(ctx, change, h, y);
  const Vec got = values_of<double>(change), want = {0, 1, 2, 1};
  for (std::size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-15) << i;
}

TEST(AddExpertScores, EqualsTheFormula) {
  Context ctx;
  constexpr std::int64_t kTokens = 9, kPicks = 2, kRouted = 5, kShared = 2;
  const Tensor routed = random_tensor({kTokens, kPicks}, 5), shared = random_tensor({kShared, kTokens}, 6);
  Ids ids;
  Vec factor, want(kRouted + kShared, 0.5);
  for (std::int32_t t = 0; t < kTokens; ++t) {
    ids.push_back(t % 5);
    ids.push_back((t + 2) % 5);
    factor.push_back(0.1 * (t + 1));
  }
  const Vec r = ref::doubles(routed), s = ref::doubles(shared);
  for (std::size_t t = 0; t < kTokens; ++t) {
    for (std::size_t j = 0; j < kPicks; ++j) want[idx(ids[t * kPicks + j])] += r[t * kPicks + j] * factor[t];
    for (std::size_t e = 0; e < kShared; ++e) want[kRouted + e] += s[e * kTokens + t] * factor[t];
  }
  const Tensor scores = tensor_of(Vec(kRouted + kShared, 0.5), {kRouted + kShared});
  ops::add_expert_scores(ctx, scores, tensor_of(ids, {kTokens, kPicks}), routed, shared, tensor_of(factor, {kTokens}));
  const Vec got = values_of<double>(scores);
  for (std::size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-14) << i;
}

}  // namespace
}  // namespace emox::test
