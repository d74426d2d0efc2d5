// Whether pieces make whole arrays: every element once, and parameters with both moments or none.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "parallel/checkpoint/manifest.h"

namespace emox {

/// The pieces ordered by name, role and begin: those of one array are neighbours, in the order of their elements.
std::vector<const ManifestTensor*> in_order(std::span<const ManifestTensor> pieces);

/// IoError that names the array, the elements and the holders when: elements are in two pieces or in none; the pieces
/// of an array differ in shape or element type; a parameter has moments without a weight, one moment, or moments of
/// another shape than the weight; two arrays have one place in a file. An array without elements is one piece, [0, 0).
/// `holder` says whose a piece is ("rank 3"). O(n log n).
void check_coverage(std::span<const ManifestTensor> pieces,
                    const std::function<std::string(const ManifestTensor&)>& holder);

}  // namespace emox
