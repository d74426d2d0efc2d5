// What a device computes against the CPU: equal but for the order of sums.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "runtime/core/idx.h"
#include "tests/support/training.h"

namespace emox::test {

inline double norm_of(const std::vector<float>& x) {
  double sum = 0;
  for (const float v : x) sum += static_cast<double>(v) * static_cast<double>(v);
  return std::sqrt(sum);
}

/// |got - want| / |want| of each tensor.
inline void expect_near(const NamedValues& got, const NamedValues& want, double tolerance) {
  ASSERT_EQ(got.size(), want.size());
  for (const auto& [name, w] : want) {
    const std::vector<float>& g = got.at(name);
    ASSERT_EQ(g.size(), w.size()) << name;
    std::vector<float> off(w.size());
    for (std::size_t i = 0; i < w.size(); ++i) off[i] = g[i] - w[i];
    EXPECT_LE(norm_of(off), tolerance * norm_of(w)) << name;
  }
}

inline void expect_near(const StepMetrics& got, const StepMetrics& want, double tolerance) {
  EXPECT_NEAR(got.ce, want.ce, tolerance * want.ce);
  EXPECT_NEAR(got.lm_z, want.lm_z, tolerance * want.lm_z);
  EXPECT_NEAR(got.lb, want.lb, tolerance * std::abs(want.lb));
  EXPECT_NEAR(got.router_z, want.router_z, tolerance * std::abs(want.router_z));
  EXPECT_NEAR(got.grad_norm, want.grad_norm, tolerance * want.grad_norm);
  EXPECT_EQ(got.experts_per_document, want.experts_per_document);
  EXPECT_EQ(got.load_max_over_mean, want.load_max_over_mean);
  EXPECT_EQ(got.pool_mean, want.pool_mean);
}

}  // namespace emox::test
