// Small sums that every transport does over rows and nodes.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "runtime/core/idx.h"
#include "runtime/core/tensor.h"

namespace emox {

/// Bytes of one row of x[n, ...].
inline std::size_t row_bytes(const TensorView& x) { return idx(x.shape().tail().numel()) * size_of(x.dtype()); }

/// Communicator::nodes() from one name a rank: equal names are one node.
std::vector<int> number_nodes(std::span<const int> names);

}  // namespace emox
