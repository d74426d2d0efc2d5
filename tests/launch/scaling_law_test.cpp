// The scaling law against points that lie on a known one, exactly and with noise.
#include "launch/analysis/runs/scaling_law.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace emox {
namespace {

constexpr double kE = 1.69, kA = 406.4, kB = 410.7, kAlpha = 0.34, kBeta = 0.28;

double law(double n, double d) { return kE + kA * std::pow(n, -kAlpha) + kB * std::pow(d, -kBeta); }

std::vector<LawPoint> points(double noise, std::mt19937& random) {
  std::normal_distribution<double> draw(0, 1);
  std::vector<LawPoint> p;
  for (const double n : {1e7, 4e7, 1.6e8, 6.4e8, 2.5e9})
    for (const double d : {2e8, 1e9, 5e9, 2.5e10}) p.push_back({n, d, law(n, d) * (1 + noise * draw(random))});
  return p;
}

bool covers(const LawFigure& f, double truth) { return f.low <= truth && truth <= f.high; }

TEST(ScalingLaw, PointsWithoutNoiseGiveItBack) {
  std::mt19937 random(1);
  const LawFit fit = fit_scaling_law(points(0, random));
  EXPECT_EQ(fit.refused, "");
  EXPECT_NEAR(fit.e.value / kE, 1, 5e-4);
  EXPECT_NEAR(fit.a.value / kA, 1, 5e-4);
  EXPECT_NEAR(fit.b.value / kB, 1, 5e-4);
  EXPECT_NEAR(fit.alpha.value / kAlpha, 1, 5e-4);
  EXPECT_NEAR(fit.beta.value / kBeta, 1, 5e-4);
  EXPECT_NEAR(fit.at(1e9, 1e10), law(1e9, 1e10), 1e-4);
  EXPECT_LT(fit.spread, 1e-6);
}

// 95 % intervals hold the truth in 90 to 99 % of 200 trials.
TEST(ScalingLaw, IntervalsCoverWithNoise) {
  std::mt19937 random(20261201);
  int trials = 0, e = 0, a = 0, b = 0, alpha = 0, beta = 0;
  for (; trials < 200; ++trials) {
    const LawFit fit = fit_scaling_law(points(0.004, random));
    e += covers(fit.e, kE), a += covers(fit.a, kA), b += covers(fit.b, kB);
    alpha += covers(fit.alpha, kAlpha), beta += covers(fit.beta, kBeta);
    EXPECT_NEAR(fit.spread, 0.004, 0.003);
  }
  for (const int covered : {e, a, b, alpha, beta}) {
    EXPECT_GE(covered, 180);
    EXPECT_LE(covered, 198);
  }
}

// One run that broke down does not carry the others away, and is named.
TEST(ScalingLaw, AnOutlierIsFound) {
  std::mt19937 random(3);
  auto p = points(0.002, random);
  p[7].loss *= 1.2;
  const LawFit fit = fit_scaling_law(p);
  EXPECT_NE(std::find(fit.outliers.begin(), fit.outliers.end(), 7U), fit.outliers.end());
  EXPECT_NEAR(fit.at(1e9, 1e10), law(1e9, 1e10), 0.02 * law(1e9, 1e10));
}

TEST(ScalingLaw, TooFewPointsAreRefused) {
  std::mt19937 random(4);
  const auto all = points(0, random);
  EXPECT_NE(fit_scaling_law({all.begin(), all.begin() + 5}).refused.find("5 finished runs"), std::string::npos);
  EXPECT_NE(fit_scaling_law({all.begin(), all.begin() + 8}).refused.find("2 different numbers of parameters"),
            std::string::npos);
  auto broken = all;
  broken[3].loss = NAN;
  EXPECT_NE(fit_scaling_law(broken).refused, "");
}

}  // namespace
}  // namespace emox
