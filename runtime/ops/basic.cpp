#include "runtime/ops/basic.h"

#include "runtime/cpu/kernels.h"
#include "runtime/ops/check.h"
#include "runtime/telemetry/spans.h"

namespace emox::ops {

void fill(Context& ctx, TensorView x, float value) {
  require<ShapeError>(x.dtype() == DType::F32, "[fill] x is {}, expected f32", name_of(x.dtype()));
  expect_cpu("fill", ctx);
  cpu::fill(ctx, x, value);
}

void zero(Context& ctx, TensorView x) {
  expect_cpu("zero", ctx);
  cpu::zero(ctx, x);
}

void copy(Context& ctx, TensorView dst, TensorView src) {
  require<ShapeError>(dst.dtype() == src.dtype() && dst.numel() == src.numel(), "[copy] {} {} into {} {}",
                      name_of(src.dtype()), src.shape().str(), name_of(dst.dtype()), dst.shape().str());
  expect_cpu("copy", ctx);
  cpu::copy(ctx, dst, src);
}

void add(Context& ctx, TensorView y, TensorView x) {
  expect("add", "x", x, DType::F32, y.shape());
  expect("add", "y", y, DType::F32, y.shape());
  expect_cpu("add", ctx);
  cpu::add(ctx, y, x);
}

void random_truncated_normal(Context& ctx, TensorView x, const Philox& philox, std::uint32_t stream,
                             std::int64_t first_element, double std, double bound) {
  require<ShapeError>(x.dtype() == DType::F32, "[random_truncated_normal] x is {}, expected f32", name_of(x.dtype()));
  require<ShapeError>(std > 0 && bound > 0, "[random_truncated_normal] std = {} and bound = {} must be positive", std,
                      bound);
  expect_cpu("random_truncated_normal", ctx);
  cpu::random_truncated_normal(ctx, x, philox, stream, first_element, std, bound);
}

void copy_to_host(Context& ctx, void* dst, TensorView src) {
  expect_cpu("copy_to_host", ctx);
  const Span span(ctx, "copy_to_host", 0, bytes_of(src));  // a device would be waited for: counted in tests
  cpu::copy_to_host(ctx, dst, src);
}

void copy_from_host(Context& ctx, TensorView dst, const void* src) {
  expect_cpu("copy_from_host", ctx);
  cpu::copy_from_host(ctx, dst, src);
}

}  // namespace emox::ops
