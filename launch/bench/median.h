// The median of some measurements.
#pragma once

#include <algorithm>
#include <vector>

namespace emox {

/// The upper one of two in the middle; there must be one.
inline double median(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  return x[x.size() / 2];
}

}  // namespace emox
