// What the tensors of a collective must be, checked before anything is sent: a wrong call fails on the rank that made
// it, with its values, and the same way on one rank as on many.
#pragma once

#include <cstdint>
#include <span>

#include "parallel/comm/shares.h"
#include "runtime/core/tensor.h"

namespace emox {

/// `devices`: whether the tensor may lie on one.
void check_all_reduce(const TensorView& x, bool devices);
void check_all_gather(const TensorView& out, const TensorView& in, int size, bool devices);
void check_all_gather_v(const TensorView& x, std::span<const RowRange> ranges, int size, bool devices);
void check_reduce_scatter(const TensorView& x, std::span<const RowRange> ranges, int size, bool devices);
void check_broadcast(const TensorView& x, int root, int size, bool devices);
void check_split(int color);
void check_all_to_all_v(const TensorView& out, std::span<const std::int64_t> recv_rows, const TensorView& in,
                        std::span<const std::int64_t> send_rows, int rank, int size, bool devices);

}  // namespace emox
