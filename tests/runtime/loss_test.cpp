// The fused language-model head against float64 loops, its gradients against differences of these.
#include "runtime/ops/loss.h"

#include <cmath>

#include "tests/runtime/op_testing.h"

namespace emox::test {
namespace {

using ref::Ids;
using ref::Vec;

struct Case {
  std::int64_t tokens, width, vocab;
  ops::LmLossOptions options;
  unsigned seed = 1;
};

Tensor scratch_for(const Case& c) {
  const auto bytes = static_cast<std::int64_t>(ops::lm_head_loss_scratch({}, c.tokens, c.vocab));
  return Tensor({}, DType::U8, {bytes});
}

Ids any_labels(const Case& c) {
  std::mt19937 gen(c.seed);
  Ids labels;
  for (std::int64_t t = 0; t < c.tokens; ++t) {
    labels.push_back(gen() % 4 == 0 ? -1 : static_cast<std::int32_t>(gen() % static_cast<unsigned>(c.vocab)));
  }
  return labels;
}

void check(const Case& c) {
  SCOPED_TRACE(::testing::Message() << c.tokens << " tokens, width " << c.width << ", " << c.vocab << " words, z "
                                    << c.options.z_weight);
  const Tensor x = random_tensor({c.tokens, c.width}, c.seed),
               weight = random_tensor({c.vocab, c.width}, c.seed + 1, 0.5F);
  const Tensor start = random_tensor({c.vocab, c.width}, c.seed + 2, 0.1F);
  const Ids label_ids = any_labels(c);
  const Tensor labels = ids_of(label_ids);
  const Vec vx = ref::doubles(x), vw = ref::doubles(weight);
  const ref::LmLoss want = ref::lm_loss(vx, vw, label_ids, c.width);
  const auto value = [&](const ref::LmLoss& l) {
    return c.options.inverse_divisor * (l.cross_entropy + c.options.z_weight * l.squared_lse);
  };
  std::vector<Vec> all_sums;
  const auto run = [&](Context& ctx) {
    const Tensor sums = tensor_of(Vec{100.0, 200.0}, {2}), token_loss = poison({c.tokens}),
                 dx = poison({c.tokens, c.width});
    const Tensor dweight = tensor_of(floats(start), {c.vocab, c.width}), scratch = scratch_for(c);
    ops::lm_head_loss(ctx, {sums, token_loss, dx, dweight}, {x, weight, labels}, scratch, c.options);
    all_sums.push_back(ref::doubles(sums));
    std::vector<float> added = floats(dweight);
    for (std::size_t i = 0; i < added.size(); ++i) added[i] -= floats(start)[i];
    return Outputs{floats(token_loss), floats(dx), added};
  };
  const double tokens = static_cast<double>(c.tokens), width = static_cast<double>(c.width);
  // A logit sums `width` products; a log-sum-exp has that error and a sum of `vocab` terms of one sign.
  const double most = std::max({1.0, ref::largest(vx), ref::largest(vw)}), logit = width * most * most;
  const double lse_error =
      rounding(width + 2, logit) + rounding(static_cast<double>(c.vocab) + kFunction, std::max(1.0, logit));
  run_and_check(run, [&](const Outputs& got) {
    EXPECT_TRUE(all_close(got[0], want.token_loss, 2 * lse_error));
    // The derivative by a logit is (p - label + 2 z lse p) / divisor: relative error of p is that of exp(logit - lse).
    const double slope = c.options.inverse_divisor * (1.0 + 2 * c.options.z_weight * logit);
    const double slope_error = slope * (2 * lse_error + rounding(kFunction, 1.0));
    EXPECT_TRUE(ref::is_gradient(
        got[1], [&](const Vec& v) { return value(ref::lm_loss(v, vw, label_ids, c.width)); }, vx,
        2 * ref::largest(vw) *
            (slope_error + rounding(static_cast<double>(c.vocab), slope))));  // sum over words of p is 1
    EXPECT_TRUE(ref::is_gradient(
        got[2], [&](const Vec& v) { return value(ref::lm_loss(vx, v, label_ids, c.width)); }, vw,
        tokens * ref::largest(vx) * (slope_error + rounding(tokens, slope)) +
            rounding(4, ref::largest(ref::doubles(start)))));
    for (std::int64_t t = 0; t < c.tokens; ++t) {
      if (label_ids[t] >= 0) continue;
      EXPECT_EQ(got[0][t], 0.0F);
      for (std::int64_t d = 0; d < c.width; ++d)
        ASSERT_EQ(got[1][t * c.width + d], 0.0F) << "token " << t << " is not scored";
    }
  });
  for (std::size_t i = 0; i < all_sums.size(); ++i) {
    EXPECT_EQ(all_sums[i], all_sums[i / 2 * 2]);  // same number of threads, same bits
    EXPECT_NEAR(all_sums[i][0], 100.0 + want.cross_entropy, 2 * tokens * lse_error);
    EXPECT_NEAR(all_sums[i][1], 200.0 + want.squared_lse, 2 * tokens * lse_error * std::max(1.0, logit));
  }
}

TEST(LmHeadLoss, EqualsTheFormulaAndItsGradient) {
  check({5, 3, 7, {}});
  check({5, 3, 7, {.inverse_divisor = 0.2, .z_weight = 0.1}});
  check({1, 1, 1, {}});
  check({1, 4, 2, {.inverse_divisor = 0.5, .z_weight = 1.0}});
  check({2, 2, 1, {.inverse_divisor = 1.0, .z_weight = 0.5}});
  check({0, 3, 7, {}});
}

TEST(LmHeadLoss, RandomShapes) {
  std::mt19937 gen(4);
  for (unsigned i = 0; i < 8; ++i) {
    check({any_size(gen, {1, 2, 17}, 20),
           any_size(gen, {1, 3, 8}, 9),
           any_size(gen, {1, 2, 31}, 40),
           {.inverse_divisor = 0.25, .z_weight = i % 2 == 0 ? 0.0 : 0.01},
           10 + i});
  }
}

TEST(LmHeadLoss, MoreTokensAndWordsThanABlock) {
  check({150, 4, 20, {.inverse_divisor = 0.01, .z_weight = 0.01}});
  check({1061, 2, 3, {.inverse_divisor = 0.001, .z_weight = 0.01}});
  check({11, 3, 333, {.inverse_divisor = 0.1, .z_weight = 0.01}});
  check({2, 1, 9001, {.inverse_divisor = 0.5, .z_weight = 0.01}});
}

// Words come in pieces of 4096. Every element of the gradients against (softmax - label) in closed form, labels on both
// sides of a boundary.
TEST(LmHeadLoss, WordsOnBothSidesOfAPiece) {
  for (const std::int64_t vocab : {4095, 4096, 4097, 8192, 8193}) {
    const auto last = static_cast<std::int32_t>(vocab - 1);
    const Ids label_ids{0, 4094, std::min(4095, last), std::min(4096, last), last, -1};
    const std::int64_t tokens = static_cast<std::int64_t>(label_ids.size()), width = 2;
    SCOPED_TRACE(::testing::Message() << vocab << " words");
    const Tensor x = random_tensor({tokens, width}, 3), weight = random_tensor({vocab, width}, 4);
    const Tensor labels = ids_of(label_ids);
    const Vec vx = ref::doubles(x), vw = ref::doubles(weight);
    const ref::LmLoss loss = ref::lm_loss(vx, vw, label_ids, width);
    Vec want_dx(vx.size()), want_dweight(vw.size());
    for (std::int64_t t = 0; t + 1 < tokens; ++t) {
      const auto logit = [&](std::int64_t v) { return vx[t * 2] * vw[v * 2] + vx[t * 2 + 1] * vw[v * 2 + 1]; };
      const double lse = loss.token_loss[t] + logit(label_ids[t]);
      for (std::int64_t v = 0; v < vocab; ++v) {
        const double d = std::exp(logit(v) - lse) - (v == label_ids[t] ? 1 : 0);
        for (std::int64_t i = 0; i < width; ++i) {
          want_dx[t * 2 + i] += d * vw[v * 2 + i];
          want_dweight[v * 2 + i] += d * vx[t * 2 + i];
        }
      }
    }
    const auto run = [&](Context& ctx) {
      const Tensor sums = tensor_of(Vec{0.0, 0.0}, {2}), token_loss = poison({tokens}), dx = poison({tokens, width});
      const Tensor dweight = filled({vocab, width}, 0.0F), scratch = scratch_for({tokens, width, vocab, {}});
      ops::lm_head_loss(ctx, {sums, token_loss, dx, dweight}, {x, weight, labels}, scratch, {});
      return Outputs{floats(token_loss), floats(dx), floats(dweight)};
    };
    run_and_check(run, [&](const Outputs& got) {
      const double terms = static_cast<double>(vocab) + kFunction;
      EXPECT_TRUE(all_close(got[0], loss.token_loss, rounding(terms, 2.0)));
      EXPECT_TRUE(all_close(got[1], want_dx, rounding(2 * terms, 2.0)));
      EXPECT_TRUE(all_close(got[2], want_dweight, rounding(2 * terms, 2.0)));
    });
  }
}

TEST(LmHeadLoss, LossAloneIsTheSameLoss) {
  const Case c{37, 6, 50, {.inverse_divisor = 0.1, .z_weight = 0.1}};
  const Tensor x = random_tensor({37, 6}, 1), weight = random_tensor({50, 6}, 2), labels = ids_of(any_labels(c));
  for (const int threads : {1, 2}) {
    Context ctx = context(threads);
    const Tensor scratch = scratch_for(c), with({}, DType::F64, {2}), without({}, DType::F64, {2});
    const Tensor dx = poison({37, 6}), dweight = filled({50, 6}, 0.0F), each = poison({37});
    ops::lm_head_loss(ctx, {.sums = with, .dx = dx, .dweight = dweight}, {x, weight, labels}, scratch, c.options);
    ops::lm_head_loss(ctx, {.sums = without, .token_loss = each}, {x, weight, labels}, scratch, c.options);
    EXPECT_EQ(ref::doubles(with), ref::doubles(without));
    double sum = 0;
    for (float v : floats(each)) sum += static_cast<double>(v);
    EXPECT_NEAR(sum, ref::doubles(without)[0], rounding(2, sum));
  }
}

TEST(LmHeadLoss, NothingScoredChangesNothing) {
  const Case c{9, 3, 5, {.inverse_divisor = 1.0, .z_weight = 1.0}};
  Context ctx = context(2);
  const Tensor sums = tensor_of(Vec{1.5, 2.5}, {2}), token_loss = poison({9}), dx = poison({9, 3}),
               dweight = filled({5, 3}, 3.0F);
  const Tensor x = random_tensor({9, 3}, 1), weight = random_tensor({5, 3}, 2), labels = ids_of(Ids(9, -1));
  ops::lm_head_loss(ctx, {sums, token_loss, dx, dweight}, {x, weight, labels}, scratch_for(c), c.options);
  EXPECT_EQ(ref::doubles(sums), (Vec{1.5, 2.5}));
  EXPECT_EQ(floats(token_loss), std::vector<float>(9, 0.0F));
  EXPECT_EQ(floats(dx), std::vector<float>(27, 0.0F));
  EXPECT_EQ(floats(dweight), std::vector<float>(15, 3.0F));
}

TEST(LmHeadLoss, EqualLogitsCostTheLogarithmOfTheVocabulary) {
  const Case c{4, 2, 64, {}};
  Context ctx = context();
  const Tensor sums({}, DType::F64, {2}), token_loss = poison({4});
  const Tensor x = random_tensor({4, 2}, 1), weight = filled({64, 2}, 0.0F), labels = ids_of({0, 63, -1, 5});
  ops::lm_head_loss(ctx, {.sums = sums, .token_loss = token_loss}, {x, weight, labels}, scratch_for(c), c.options);
  const double log64 = std::log(64.0);
  EXPECT_TRUE(all_close(floats(token_loss), {log64, log64, 0.0, log64}, rounding(kFunction, log64)));
  EXPECT_NEAR(ref::doubles(sums)[0], 3 * log64, rounding(kFunction, 3 * log64));
  EXPECT_NEAR(ref::doubles(sums)[1], 3 * log64 * log64, rounding(kFunction, 6 * log64 * log64));
}

TEST(LmHeadLoss, NamesALabelBeyondTheVocabulary) {
  const Case c{2, 2, 5, {}};
  Context ctx = context();
  const Tensor sums({}, DType::F64, {2}), x = random_tensor({2, 2}, 1), weight = random_tensor({5, 2}, 2);
  const Tensor labels = ids_of({4, 5});
  try {
    ops::lm_head_loss(ctx, {.sums = sums}, {x, weight, labels}, scratch_for(c), {});
    ADD_FAILURE() << "label 5 of 5 words was accepted";
  } catch (const UsageError& e) {
    EXPECT_NE(e.message().find("model.vocab_size is 5"), std::string::npos) << e.message();
  }
}

TEST(LmHeadLoss, LargeLogitsDoNotOverflow) {
  const Case c{2, 1, 3, {}};
  Context ctx = context();
  const Tensor sums({}, DType::F64, {2}), token_loss = poison({2}), dx = poison({2, 1}), dweight = filled({3, 1}, 0.0F);
  const Tensor x = tensor_of(std::vector<float>{1, 1}, {2, 1}),
               weight = tensor_of(std::vector<float>{-500, 500, 0}, {3, 1}), labels = ids_of({1, 0});
  ops::lm_head_loss(ctx, {sums, token_loss, dx, dweight}, {x, weight, labels}, scratch_for(c), c.options);
  EXPECT_TRUE(all_close(floats(token_loss), {0.0, 1000.0}, rounding(kFunction, 1000.0)));
  EXPECT_TRUE(all_close(floats(dx), {0.0, 1000.0}, rounding(kFunction, 1000.0)));
}

}  // namespace
}  // namespace emox::test
