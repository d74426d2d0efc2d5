// "% of GEMM" is a share: never above 100, whatever the machine did while the rate was measured.
#include <gtest/gtest.h>

#include <vector>

#include "launch/run/gemm_rate.h"

namespace emox {
namespace {

TEST(GemmFloor, IsTheShareOfTheMeasuredRate) {
  int measured = 0;
  GemmFloor floor([&] { return ++measured, 100e9; });
  EXPECT_EQ(floor.rate(), 100e9);
  EXPECT_DOUBLE_EQ(floor.fraction(50e9, 1.0, nullptr), 0.5);
  EXPECT_DOUBLE_EQ(floor.fraction(50e9, 0.5, nullptr), 1.0);
  EXPECT_EQ(measured, 1);
}

TEST(GemmFloor, ARateThatWasTooLowIsCorrected) {
  // The machine was busy at the start; the second measurement is right.
  std::vector<double> rates{40e9, 100e9};
  std::size_t next = 0;
  GemmFloor floor([&] { return rates.at(next++); });
  EXPECT_DOUBLE_EQ(floor.fraction(50e9, 1.0, nullptr), 0.5);
  EXPECT_EQ(floor.rate(), 100e9);
  EXPECT_DOUBLE_EQ(floor.fraction(30e9, 1.0, nullptr), 0.3);  // from here on of the corrected rate
}

TEST(GemmFloor, NeverAboveOneAndMeasuredAFewTimesOnly) {
  int measured = 0;
  GemmFloor floor([&] { return ++measured, 10e9; });  // something else keeps the machine busy whenever it is measured
  double before = 0;
  for (double reached = 5e9; reached < 100e9; reached *= 1.1) {
    const double fraction = floor.fraction(reached, 1.0, nullptr);
    EXPECT_GT(fraction, 0.0);
    EXPECT_LE(fraction, 1.0);
    EXPECT_GE(floor.rate(), before);
    before = floor.rate();
  }
  EXPECT_LE(measured, 4);
}

TEST(GemmFloor, ARealRateIsPositive) {
  Context ctx;
  EXPECT_GT(gemm_rate(ctx, 1), 1e8);
}

}  // namespace
}  // namespace emox
