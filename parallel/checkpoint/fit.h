// Whether a checkpoint's arrays are those that a model needs, said before anything is read.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "parallel/checkpoint/manifest.h"

namespace emox {

struct WantedArray {
  std::string name;
  std::string role;  ///< "weight", "exp_avg", "exp_avg_sq"
  Shape shape;
};

/// Every difference between the saved arrays and the wanted ones, for people, a line a kind: another shape (both are
/// given), not saved, not wanted. Arrays that differ in the numbers in their names alone, and differ in the same way,
/// share a line and are counted. Saved roles that nobody wants do not count. At most `most_lines` lines, the last of
/// which then says how many are left out. Empty: every wanted array can be loaded, and nothing is left over.
std::vector<std::string> describe_misfits(std::span<const ManifestTensor> saved, std::span<const WantedArray> wanted,
                                          std::size_t most_lines = 12);

}  // namespace emox
