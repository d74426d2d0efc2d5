// The sum (or maximum) of the ranks' contributions, always taken in rank order: the same ranks give the same bits,
// whatever transport carried the parts.
#pragma once

#include <cstdint>
#include <span>

#include "parallel/comm/communicator.h"
#include "runtime/core/dtype.h"

namespace emox {

/// Every outs[k][i] = parts[0][i] + parts[1][i] + ... for n elements. An output may be one of the parts (an all-reduce
/// in place); they must not overlap otherwise.
void reduce_in_rank_order(std::span<const void* const> parts, std::span<void* const> outs, std::int64_t n, DType dtype,
                          ReduceOp op);

}  // namespace emox
