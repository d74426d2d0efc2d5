#include "data/loader/mixture.h"

#include <random>
#include <set>

#include "data/loader/permutation.h"
#include "runtime/core/idx.h"
#include "tests/data/data_support.h"

namespace emox::test {
namespace {

TEST(FloorSum, MatchesTheDefinition) {
  std::mt19937_64 random(1);
  const auto draw = [&](std::uint64_t below) { return random() % below; };
  for (int trial = 0; trial < 2000; ++trial) {
    const std::uint64_t scale = std::uint64_t{1} << (1 + draw(33));
    const std::uint64_t n = draw(200), m = 1 + draw(scale), a = draw(scale), b = draw(2 * scale);
    std::uint64_t want = 0;
    for (std::uint64_t i = 0; i < n; ++i) want += (a * i + b) / m;
    ASSERT_EQ(floor_sum(n, m, a, b), want) << n << " " << m << " " << a << " " << b;
  }
}

TEST(Mixture, CountsMatchCountingOneByOne) {
  for (const std::uint32_t offset : {0u, 1u, 0x80000000u, 0xFFFFFFFFu, 123456789u}) {
    const Mixture mixture({1, 2.5, 0.01, 7}, offset);
    std::vector<std::int64_t> counts(4, 0);
    for (std::int64_t g = 0; g < 20000; ++g) {
      for (int s = 0; s < 4; ++s) ASSERT_EQ(mixture.count_before(g, s), counts[idx(s)]) << g << " " << s;
      ++counts[idx(mixture.source_of(g))];
    }
  }
}

TEST(Mixture, CountsMeetAtTheEndOfAPeriodAndFarBeyondIt) {
  const Mixture mixture({3, 1, 4}, 77);
  const std::int64_t period = std::int64_t{1} << 32;
  for (const std::int64_t g : {period - 1, period, 3 * period + 12345, std::int64_t{1} << 45}) {
    std::int64_t total = 0;
    for (int s = 0; s < 3; ++s) {
      total += mixture.count_before(g, s);
      // One more sequence is counted for its own source and no other.
      EXPECT_EQ(mixture.count_before(g + 1, s) - mixture.count_before(g, s), mixture.source_of(g) == s ? 1 : 0);
    }
    EXPECT_EQ(total, g);
  }
  EXPECT_EQ(mixture.count_before(period, 1), period / 8);  // over a whole period a share is met exactly
}

TEST(Mixture, EveryStretchHasTheProportionsOfTheWeights) {
  const std::vector<double> weights = {5, 3, 1, 1};
  const Mixture mixture(weights, 4242);
  for (const std::int64_t begin : {std::int64_t{0}, std::int64_t{999}, std::int64_t{1} << 40}) {
    for (const std::int64_t length : {20, 100, 1000, 100000}) {
      for (int s = 0; s < 4; ++s) {
        const std::int64_t got = mixture.count_before(begin + length, s) - mixture.count_before(begin, s);
        const double want = weights[idx(s)] / 10 * static_cast<double>(length);
        EXPECT_NEAR(static_cast<double>(got), want, 4) << begin << " " << length << " " << s;
      }
    }
  }
}

TEST(Mixture, RejectsBadWeights) {
  EXPECT_TRUE(throws_with<UsageError>([] { Mixture({}, 0); }, {"at least one source"}));
  EXPECT_TRUE(throws_with<UsageError>([] { Mixture({1, 0}, 0); }, {"weight 0 of source 1"}));
  EXPECT_TRUE(throws_with<UsageError>([] { Mixture({1e12, 1, 1e12}, 0); }, {"source 1", "too small"}));
}

TEST(Permutation, IsABijectionForEverySize) {
  const Philox family(9, RngPurpose::DataOrder);
  std::vector<std::int64_t> sizes = {127, 128, 129, 1000, 4095, 4096, 4097};
  for (std::int64_t n = 1; n <= 70; ++n) sizes.push_back(n);
  for (const std::int64_t n : sizes) {
    const Permutation permutation(family, 0, 0, n);
    std::set<std::int64_t> images;
    for (std::int64_t i = 0; i < n; ++i) images.insert(permutation(i));
    ASSERT_EQ(static_cast<std::int64_t>(images.size()), n);
    ASSERT_EQ(*images.begin(), 0);
    ASSERT_EQ(*images.rbegin(), n - 1);
  }
}

TEST(Permutation, DiffersBySeedStreamAndEpochAndIsNoRotation) {
  const Philox family(9, RngPurpose::DataOrder), other(10, RngPurpose::DataOrder);
  const auto images = [](const Permutation& p) {
    std::vector<std::int64_t> v;
    for (std::int64_t i = 0; i < 1000; ++i) v.push_back(p(i));
    return v;
  };
  const auto base = images({family, 0, 0, 1000});
  int same = 0, following = 0;
  for (const auto& v : {images({other, 0, 0, 1000}), images({family, 1, 0, 1000}), images({family, 0, 1, 1000})}) {
    for (std::size_t i = 0; i < v.size(); ++i) same += v[i] == base[i];
  }
  for (std::size_t i = 1; i < base.size(); ++i) following += base[i] == (base[i - 1] + 1) % 1000;
  EXPECT_LT(same, 20);  // 3 are expected of unrelated permutations
  EXPECT_LT(following, 10);
  EXPECT_EQ(base, images({family, 0, 0, 1000}));
}

TEST(Permutation, ReachesLargeSizes) {
  const Philox family(1, RngPurpose::DataOrder);
  const std::int64_t n = (std::int64_t{1} << 40) + 1;
  const Permutation permutation(family, 0, 0, n);
  std::set<std::int64_t> images;
  for (std::int64_t i = 0; i < 1000; ++i) images.insert(permutation(i));
  EXPECT_EQ(images.size(), 1000u);
  EXPECT_GE(*images.begin(), 0);
  EXPECT_LT(*images.rbegin(), n);
  EXPECT_GT(*images.rbegin(), n / 2);
}

}  // namespace
}  // namespace emox::test
