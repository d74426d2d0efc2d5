// Elementwise and copy ops. Shapes stand in the comments; in all ops: T tokens, D model width, R rows, E experts.
//
// Conventions of every op (README.md of this folder): outputs come first; a gradient with respect to activations is
// assigned unless the name ends in _add; a gradient with respect to parameters is accumulated (+=); sums run in a fixed
// order for a given number of threads, so results repeat bit for bit.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/core/context.h"
#include "runtime/core/idx.h"
#include "runtime/core/tensor.h"
#include "runtime/rng/philox.h"

namespace emox::ops {

/// x[...] = value (f32).
void fill(Context& ctx, TensorView x, float value);
/// x[...] = 0 bytes, any dtype.
void zero(Context& ctx, TensorView x);
/// dst = src, same dtype and number of elements.
void copy(Context& ctx, TensorView dst, TensorView src);
/// dst = src, the same number of elements, f32 to bf16 (rounded to the nearest, ties to even) or bf16 to f32.
void convert(Context& ctx, TensorView dst, TensorView src);
/// y += x, activations.
void add(Context& ctx, TensorView y, TensorView x);

/// x ~ N(0, std^2) restricted to [-bound, bound] by inverting the CDF, as PyTorch's trunc_normal_ (spec 1.4).
/// Element i is a pure function of (philox, stream, first_element + i), so a shard draws what the whole tensor would.
void random_truncated_normal(Context& ctx, TensorView x, const Philox& philox, std::uint32_t stream,
                             std::int64_t first_element, double std, double bound);

/// The one explicit way from device to host and back; the host side is complete when the call returns. Their spans
/// count them: each copy_to_host is a place where the host waits for a device.
void copy_to_host(Context& ctx, void* dst, TensorView src);
void copy_from_host(Context& ctx, TensorView dst, const void* src);

template <typename T>
std::vector<T> to_host(Context& ctx, TensorView src) {
  (void)src.template data<T>();  // checks the dtype
  std::vector<T> v(idx(src.numel()));
  copy_to_host(ctx, v.data(), src);
  return v;
}

}  // namespace emox::ops
