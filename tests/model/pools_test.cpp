// Pool sizes are keyed draws; label pools divide the experts (spec 3.3).
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numeric>

#include "model/moe/pools.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

ModelConfig config_of(PoolMode mode) {
  ModelConfig c;
  c.num_experts = 128, c.top_k = 8, c.shared_experts = 1;
  c.pool = mode, c.pool_size = 20, c.pool_min = 8, c.pool_max = 128;
  return c;
}

TEST(PoolSizes, FixedAndOffAreConstants) {
  const auto fixed = make_pool_sizes(config_of(PoolMode::Fixed), 1), off = make_pool_sizes(config_of(PoolMode::Off), 1);
  for (const std::int64_t step : {1, 2, 1000})
    for (const std::int64_t layer : {0, 15}) {
      EXPECT_EQ(fixed->size(step, layer, {3, 1, 0}), 20);
      EXPECT_EQ(off->size(step, layer, {3, 1, 0}), 127);
    }
}

TEST(PoolSizes, PartOfTheStepsAndLayers) {
  ModelConfig c = config_of(PoolMode::Fixed);
  c.pool_from_step = 10, c.pool_until_step = 20, c.pool_from_layer = 3;
  const auto sizes = make_pool_sizes(c, 1);
  for (const std::int64_t step : {0, 9, 10, 19, 20, 1000})
    for (const std::int64_t layer : {0, 2, 3, 15})
      EXPECT_EQ(sizes->size(step, layer, {3, 1, 0}), step >= 10 && step < 20 && layer >= 3 ? 20 : 127)
          << step << " " << layer;
  c.pool_until_step = 0;
  EXPECT_EQ(make_pool_sizes(c, 1)->size(1'000'000, 3, {3, 1, 0}), 20);
  EXPECT_EQ(fixed_pool_sizes(7)->size(0, 0, {3, 1, 0}), 7);
}

// The share holds within four standard deviations, a document is free in all layers or in none, and the sizes of the
// others are those that they have when none is free.
TEST(PoolSizes, AShareOfTheDocumentsIsFreeInAllLayers) {
  ModelConfig c = config_of(PoolMode::Uniform);
  c.pool_max = 100;  // no draw of its own is without a limit
  const auto all = make_pool_sizes(c, 5);
  for (const double share : {0.0, 0.25, 0.9, 1.0}) {
    c.pool_free_share = share;
    const auto some = make_pool_sizes(c, 5);
    int free = 0, documents = 0;
    for (const std::int64_t step : {1, 2})
      for (std::int64_t sequence = 0; sequence < 400; ++sequence)
        for (std::int32_t document = 0; document < 5; ++document, ++documents) {
          const bool is_free = some->size(step, 0, {sequence, document, 0}) == 127;
          free += is_free;
          for (const std::int64_t layer : {0, 1, 15})
            ASSERT_EQ(some->size(step, layer, {sequence, document, 0}),
                      is_free ? 127 : all->size(step, layer, {sequence, document, 0}));
        }
    EXPECT_NEAR(free, share * documents, 4 * std::sqrt(share * (1 - share) * documents)) << share;
  }
}

bool free_at(const PoolSizes& pools, std::int64_t step, std::int64_t layer, std::int64_t sequence,
             std::int64_t position, std::int32_t document = 0) {
  return pools.is_free(step, layer, {sequence, document, 0}, position);
}

// The share holds within four standard deviations, in each layer anew, and pools are drawn as if no token were free.
TEST(FreeTokens, AShareOfThemInEachLayer) {
  for (const PoolMode mode : {PoolMode::Uniform, PoolMode::Fixed}) {
    ModelConfig c = config_of(mode);
    c.pool_free_share = 0.3;
    const auto all = make_pool_sizes(c, 5);
    EXPECT_FALSE(all->frees_tokens());
    for (const double share : {0.02, 0.5, 0.75, 1.0}) {
      c.pool_free_tokens = share;
      const auto some = make_pool_sizes(c, 5);
      EXPECT_TRUE(some->frees_tokens());
      int free = 0, both_layers = 0, tokens = 0;
      for (const std::int64_t step : {1, 900})
        for (std::int64_t sequence = 0; sequence < 20; ++sequence) {
          for (std::int64_t position = 0; position < 300; ++position, ++tokens) {
            const bool first = free_at(*some, step, 0, sequence, position);
            free += first;
            both_layers += first && free_at(*some, step, 1, sequence, position);
          }
          EXPECT_EQ(some->size(step, 3, {sequence, 1, 0}), all->size(step, 3, {sequence, 1, 0}));
        }
      const auto deviation = [&](double p) { return 4 * std::sqrt(p * (1 - p) * tokens); };
      EXPECT_NEAR(free, share * tokens, deviation(share)) << share;
      EXPECT_NEAR(both_layers, share * share * tokens, deviation(share * share)) << share;
    }
  }
}

// A function of (seed, step, layer, sequence, position) and of nothing else: not of the order of the calls, not of
// where the documents of the sequence begin.
TEST(FreeTokens, DrawsAreAFunctionOfTheirKey) {
  ModelConfig c = config_of(PoolMode::Uniform);
  c.pool_free_tokens = 0.5;
  const auto a = make_pool_sizes(c, 5), b = make_pool_sizes(c, 5), other = make_pool_sizes(c, 6);
  int seed = 0, step = 0, layer = 0, sequence = 0, position = 0, places = 0;
  for (std::int64_t s = 19; s >= 0; --s)
    for (std::int64_t t = 0; t < 50; ++t, ++places) {
      const bool x = free_at(*a, 7, 3, s, t);
      seed += x == free_at(*other, 7, 3, s, t);
      step += x == free_at(*a, 8, 3, s, t);
      layer += x == free_at(*a, 7, 4, s, t);
      sequence += x == free_at(*a, 7, 3, s + 1, t);
      position += x == free_at(*a, 7, 3, s, t + 1);
    }
  // Half of 1000 by chance, give or take 16.
  for (const int same : {seed, step, layer, sequence, position}) EXPECT_NEAR(same, 500, 80) << "of " << places;
  for (std::int64_t s = 0; s < 20; ++s)
    for (std::int64_t t = 0; t < 50; ++t) EXPECT_EQ(free_at(*b, 7, 3, s, t, 9), free_at(*a, 7, 3, s, t));
}

// A function of (seed, step, layer, sequence, document) and of nothing else: not of the order of the calls, not of the
// domain, not of the object.
TEST(PoolSizes, UniformDrawsAreAFunctionOfTheirKey) {
  const ModelConfig c = config_of(PoolMode::Uniform);
  const auto a = make_pool_sizes(c, 5), b = make_pool_sizes(c, 5), other = make_pool_sizes(c, 6);
  int same_as_other = 0, places = 0, same_step = 0, same_layer = 0, same_sequence = 0, same_document = 0;
  for (std::int64_t sequence = 29; sequence >= 0; --sequence)
    for (std::int32_t document = 0; document < 10; ++document, ++places) {
      const std::int64_t size = a->size(7, 3, {sequence, document, 0});
      same_as_other += size == other->size(7, 3, {sequence, document, 0});
      same_step += size == a->size(8, 3, {sequence, document, 0});
      same_layer += size == a->size(7, 4, {sequence, document, 0});
      same_sequence += size == a->size(7, 3, {sequence + 1, document, 0});
      same_document += size == a->size(7, 3, {sequence, document + 1, 0});
    }
  // 1 in 121 by chance: of 300, 2.5 are expected, and more than 15 is no chance.
  for (const int same : {same_as_other, same_step, same_layer, same_sequence, same_document})
    EXPECT_LE(same, 15) << "of " << places;
  for (std::int64_t sequence = 0; sequence < 30; ++sequence)
    for (std::int32_t document = 0; document < 10; ++document)
      EXPECT_EQ(b->size(7, 3, {sequence, document, 4}), a->size(7, 3, {sequence, document, 0}));
}

TEST(PoolSizes, UniformDrawsAreUniform) {
  const auto sizes = make_pool_sizes(config_of(PoolMode::Uniform), 11);
  std::map<std::int64_t, int> seen;
  double sum = 0;
  constexpr int kDraws = 60500;  // 500 a size
  for (int i = 0; i < kDraws; ++i) {
    const std::int64_t size = sizes->size(1 + i % 50, i / 50 % 11, {i / 550 % 10, i / 5500, 0});
    ++seen[size];
    sum += static_cast<double>(size);
  }
  EXPECT_EQ(seen.size(), 121U);
  EXPECT_EQ(seen.begin()->first, 8);
  EXPECT_EQ(seen.rbegin()->first, 128);
  // Mean 68, standard deviation sqrt((121^2 - 1) / 12) = 34.9; four standard errors.
  EXPECT_NEAR(sum / kDraws, 68.0, 4 * 34.93 / std::sqrt(kDraws));
  double chi = 0;
  for (const auto& [size, n] : seen) chi += (n - 500.0) * (n - 500.0) / 500.0;
  EXPECT_NEAR(chi, 120.0, 5 * std::sqrt(240.0));  // 120 degrees of freedom
}

TEST(LabelPools, DivideTheExperts) {
  for (const auto& [experts, labels] : {std::pair<std::int64_t, std::int64_t>{12, 4}, {13, 4}, {127, 10}, {7, 1}}) {
    const auto pools = label_pools(experts, 2, labels);
    ASSERT_EQ(pools.size(), idx(experts * labels));
    std::vector<int> owners(idx(experts));
    for (std::int64_t l = 0; l < labels; ++l) {
      const auto row = pools.begin() + l * experts;
      const auto size = std::accumulate(row, row + experts, std::int64_t{0});
      EXPECT_GE(size, experts / labels);
      EXPECT_LE(size, (experts + labels - 1) / labels);
      for (std::int64_t e = 0; e < experts; ++e) owners[idx(e)] += row[e];
    }
    EXPECT_EQ(owners, std::vector<int>(idx(experts), 1));  // each expert belongs to one label
  }
}

TEST(LabelPools, RefuseTooManyLabels) {
  EXPECT_NO_THROW(label_pools(8, 2, 4));
  try {
    label_pools(8, 3, 4);
    FAIL();
  } catch (const UsageError& e) {
    EXPECT_EQ(e.message(),
              "moe.pool = label divides 8 routed experts over 4 data labels, 2 for the smallest, but a token picks 3; "
              "use at most 2 labels, or moe.num_experts with at least 12 routed experts");
  }
}

}  // namespace
}  // namespace emox
