// Philox4x32-10 against the known answers of Random123, and the draws made of it.
#include "runtime/rng/philox.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

#include "runtime/core/idx.h"

namespace emox::test {
namespace {

TEST(Philox, HasTheKnownAnswersOfRandom123) {
  constexpr std::uint32_t ones = 0xffffffff;
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({ones, ones, ones, ones}, {ones, ones}),
            (PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, EveryCoordinateSeedAndPurposeMatters) {
  const Philox p(12536, RngPurpose::PoolSize);
  std::set<PhiloxCounter> seen{p.words(1, 2, 3, 4)};
  EXPECT_EQ(p.words(1, 2, 3, 4), Philox(12536, RngPurpose::PoolSize).words(1, 2, 3, 4));
  for (const auto& w : {p.words(2, 2, 3, 4), p.words(1, 3, 3, 4), p.words(1, 2, 4, 4), p.words(1, 2, 3, 5),
                        Philox(12537, RngPurpose::PoolSize).words(1, 2, 3, 4),
                        Philox(12536 + (std::uint64_t{1} << 32), RngPurpose::PoolSize).words(1, 2, 3, 4),
                        Philox(12536, RngPurpose::Placement).words(1, 2, 3, 4)}) {
    EXPECT_TRUE(seen.insert(w).second);
  }
}

TEST(Philox, PurposesKeepTheirNumbers) {
  // Part of the reproducibility contract: a renumbering would change every run.
  EXPECT_EQ(static_cast<int>(RngPurpose::Init), 1);
  EXPECT_EQ(static_cast<int>(RngPurpose::PoolSize), 2);
  EXPECT_EQ(static_cast<int>(RngPurpose::DataOrder), 3);
  EXPECT_EQ(static_cast<int>(RngPurpose::Placement), 4);
  EXPECT_EQ(static_cast<int>(RngPurpose::Test), 5);
  EXPECT_EQ(static_cast<int>(RngPurpose::DataMixture), 6);
}

TEST(UniformInt, CoversItsRangeEvenly) {
  const Philox p(1, RngPurpose::Test);
  constexpr int n = 121000;
  std::vector<int> counts(121);
  double sum = 0;
  for (std::uint32_t i = 0; i < n; ++i) {
    const std::int64_t d = p.uniform_int(8, 128, {i, 0, 0, 0});
    ASSERT_GE(d, 8);
    ASSERT_LE(d, 128);
    ++counts[idx(d - 8)];
    sum += static_cast<double>(d);
  }
  // Mean 68, variance (121^2 - 1) / 12: five standard errors.
  EXPECT_NEAR(sum / n, 68.0, 5 * std::sqrt((121.0 * 121 - 1) / 12 / n));
  // Chi-square with 120 degrees of freedom: mean 120, deviation sqrt(240).
  double chi = 0;
  for (int c : counts) chi += (c - 1000.0) * (c - 1000.0) / 1000.0;
  EXPECT_LT(chi, 120 + 5 * std::sqrt(240.0));
}

TEST(UniformInt, RangesOfAnyKind) {
  const Philox p(2, RngPurpose::Test);
  std::set<std::int64_t> seen;
  for (std::uint32_t i = 0; i < 200; ++i) {
    EXPECT_EQ(p.uniform_int(5, 5, {i, 0, 0, 0}), 5);
    seen.insert(p.uniform_int(-1, 1, {0, i, 0, 0}));
    const std::int64_t large = p.uniform_int(0, std::int64_t{1} << 62, {0, 0, i, 0});
    EXPECT_TRUE(large >= 0 && large <= std::int64_t{1} << 62);
  }
  EXPECT_EQ(seen, (std::set<std::int64_t>{-1, 0, 1}));
}

TEST(Uniform, IsInsideTheOpenIntervalWithMeanOneHalf) {
  const Philox p(3, RngPurpose::Test);
  constexpr int n = 100000;
  double sum = 0, squares = 0;
  for (std::uint32_t i = 0; i < n; ++i) {
    const double u = p.uniform({i, 1, 2, 3});
    ASSERT_GT(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
    squares += u * u;
  }
  EXPECT_NEAR(sum / n, 0.5, 5 * std::sqrt(1.0 / 12 / n));
  EXPECT_NEAR(squares / n, 1.0 / 3, 5 * std::sqrt((1.0 / 5 - 1.0 / 9) / n));
}

}  // namespace
}  // namespace emox::test
