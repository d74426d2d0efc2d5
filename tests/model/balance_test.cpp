// Load balancing in closed form (spec 2.2).
#include "model/moe/balance.h"

#include <gtest/gtest.h>

namespace emox {
namespace {

ModelConfig model_of(std::int64_t layers, std::int64_t routed, std::int64_t top_k) {
  ModelConfig m;
  m.layers = layers, m.num_experts = routed + 1, m.shared_experts = 1, m.top_k = top_k + 1;
  m.balance_weight = 0.25, m.bias_rate = 0.5;
  return m;
}

// With T tokens, every expert picked T k / n times and every probability 1 / n, LB is its weight, whatever n, k,
// layers.
TEST(Balance, EvenRoutingCostsItsWeight) {
  constexpr std::int64_t kTokens = 48;
  for (const auto& [layers, n, k] : {std::tuple{1, 4, 2}, {3, 8, 1}, {2, 6, 6}}) {
    const ModelConfig m = model_of(layers, n, k);
    const std::vector<std::int64_t> counts(static_cast<std::size_t>(layers * n), kTokens * k / n);
    const std::vector<double> p_sum(counts.size(), static_cast<double>(kTokens) / n);
    EXPECT_NEAR(balance_term(m, counts, p_sum, 1.0 / (kTokens * kTokens)).loss, 0.25, 1e-12);
  }
}

// The loss is linear in p: the gradient is what it changes by.
TEST(Balance, TheGradientIsTheSlopeOfTheLoss) {
  const ModelConfig m = model_of(2, 3, 2);
  const std::vector<std::int64_t> counts{5, 0, 7, 4, 4, 4};
  std::vector<double> p_sum{1, 2, 3, 2, 1, 3};
  const BalanceTerm term = balance_term(m, counts, p_sum, 0.01);
  for (std::size_t i = 0; i < counts.size(); ++i) {
    std::vector<double> more = p_sum;
    more[i] += 1;
    EXPECT_NEAR(balance_term(m, counts, more, 0.01).loss - term.loss, term.gradient[i], 1e-7) << i;
    // weight / layers * n / k * C_i * factor
    EXPECT_NEAR(term.gradient[i], 0.25 / 2 * 3 / 2 * static_cast<double>(counts[i]) * 0.01, 1e-8) << i;
  }
}

TEST(Balance, TheBiasMovesAgainstTheLoad) {
  const ModelConfig m = model_of(2, 3, 1);
  std::vector<float> bias{1, 1, 1, 0, 0, 0};
  move_selection_bias(m, bias, std::vector<std::int64_t>{9, 3, 6, 2, 2, 2});
  EXPECT_EQ(bias, (std::vector<float>{0.5F, 1.5F, 1, 0, 0, 0}));  // the mean itself stays
}

TEST(Balance, LoadIsTheFullestOverTheMean) {
  const ModelConfig m = model_of(2, 4, 1);
  EXPECT_DOUBLE_EQ(load_max_over_mean(m, std::vector<std::int64_t>{4, 4, 4, 4, 8, 8, 8, 8}), 1);
  EXPECT_DOUBLE_EQ(load_max_over_mean(m, std::vector<std::int64_t>{16, 0, 0, 0, 4, 4, 4, 4}), 2.5);
  EXPECT_DOUBLE_EQ(load_max_over_mean(m, std::vector<std::int64_t>(8, 0)), 0);
}

}  // namespace
}  // namespace emox
