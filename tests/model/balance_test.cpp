// Load balancing in closed form (spec 2.2).
#include "model/moe/balance.h"

#include <gtest/gtest.h>

#include "runtime/core/idx.h"
#include "runtime/ops/balance.h"
#include "tests/support/support.h"

namespace emox {
namespace {

ModelConfig model_of(std::int64_t layers, std::int64_t routed, std::int64_t top_k) {
  ModelConfig m;
  m.layers = layers, m.num_experts = routed + 1, m.shared_experts = 1, m.top_k = top_k + 1;
  return m;
}

struct Balance {
  double loss;
  std::vector<float> gradient;
};

Balance balance(std::int64_t layers, const std::vector<std::int64_t>& counts, const std::vector<double>& p_sum,
                std::int64_t top_k, double divisor) {
  Context ctx;
  const Shape shape{layers, static_cast<std::int64_t>(counts.size()) / layers};
  const Tensor gradient({}, DType::F32, shape), loss({}, DType::F64, {1});
  ops::balance_gradient(ctx, gradient, loss, test::tensor_of(counts, shape), test::tensor_of(p_sum, shape),
                        {0.25, top_k, divisor});
  return {test::values_of<double>(loss)[0], test::values_of<float>(gradient)};
}

// With T tokens, every expert picked T k / n times and every probability 1 / n, LB is its weight, whatever n, k,
// layers.
TEST(Balance, EvenRoutingCostsItsWeight) {
  constexpr std::int64_t kTokens = 48;
  for (const auto& [layers, n, k] : {std::tuple{1, 4, 2}, {3, 8, 1}, {2, 6, 6}}) {
    const std::vector<std::int64_t> counts(idx(layers * n), kTokens * k / n);
    const std::vector<double> p_sum(counts.size(), static_cast<double>(kTokens) / n);
    EXPECT_NEAR(balance(layers, counts, p_sum, k, kTokens).loss, 0.25, 1e-12);
  }
}

// The loss is linear in p: the gradient is what it changes by.
TEST(Balance, TheGradientIsTheSlopeOfTheLoss) {
  const std::vector<std::int64_t> counts{5, 0, 7, 4, 4, 4};  // of 12 picks, so 6 tokens
  std::vector<double> p_sum{1, 2, 3, 2, 1, 3};
  const Balance term = balance(2, counts, p_sum, 2, 20);
  for (std::size_t i = 0; i < counts.size(); ++i) {
    std::vector<double> more = p_sum;
    more[i] += 1;
    EXPECT_NEAR(balance(2, counts, more, 2, 20).loss - term.loss, term.gradient[i], 1e-7) << i;
    // weight / layers * n / k * C_i / (tokens * divisor)
    EXPECT_NEAR(term.gradient[i], 0.25 / 2 * 3 / 2 * static_cast<double>(counts[i]) / (6 * 20), 1e-8) << i;
  }
  // A rank that ends before the others, under local scope.
  const Balance none = balance(2, std::vector<std::int64_t>(6, 0), std::vector<double>(6, 0), 2, 20);
  EXPECT_EQ(none.loss, 0);
  EXPECT_EQ(none.gradient, std::vector<float>(6, 0.0F));
  // Tokens without one that is scored, under local scope: a mean over none of them.
  const Balance unscored = balance(2, counts, p_sum, 2, 0);
  EXPECT_EQ(unscored.loss, 0);
  EXPECT_EQ(unscored.gradient, std::vector<float>(6, 0.0F));
}

TEST(Balance, TheBiasMovesAgainstTheLoad) {
  Context ctx;
  const Tensor bias = test::tensor_of(std::vector<float>{1, 1, 1, 0, 0, 0}, {2, 3});
  ops::move_selection_bias(ctx, bias, test::tensor_of(std::vector<std::int64_t>{9, 3, 6, 2, 2, 2}, {2, 3}), 0.5);
  EXPECT_EQ(test::values_of<float>(bias), (std::vector<float>{0.5F, 1.5F, 1, 0, 0, 0}));  // the mean itself stays
  // Even loads whose shares are no binary fractions: ten times 0.3 is less than 3.
  const Tensor even = test::tensor_of(std::vector<float>(10, 2.0F), {1, 10});
  ops::move_selection_bias(ctx, even, test::tensor_of(std::vector<std::int64_t>(10, 3), {1, 10}), 0.5);
  EXPECT_EQ(test::values_of<float>(even), std::vector<float>(10, 2.0F));
}

TEST(Balance, LoadIsTheFullestOverTheMean) {
  const ModelConfig m = model_of(2, 4, 1);
  EXPECT_DOUBLE_EQ(load_max_over_mean(m, std::vector<std::int64_t>{4, 4, 4, 4, 8, 8, 8, 8}), 1);
  EXPECT_DOUBLE_EQ(load_max_over_mean(m, std::vector<std::int64_t>{16, 0, 0, 0, 4, 4, 4, 4}), 2.5);
  EXPECT_DOUBLE_EQ(load_max_over_mean(m, std::vector<std::int64_t>(8, 0)), 0);
}

}  // namespace
}  // namespace emox
