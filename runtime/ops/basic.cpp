#include "runtime/ops/basic.h"

#include "runtime/ops/check.h"
#include "runtime/ops/dispatch.h"

namespace emox::ops {

void fill(Context& ctx, TensorView x, float value) {
  require<ShapeError>(x.dtype() == DType::F32, "[fill] x is {}, expected f32", name_of(x.dtype()));
  run<Op::fill>(ctx, x, value);
}

void zero(Context& ctx, TensorView x) { run<Op::zero>(ctx, x); }

void copy(Context& ctx, TensorView dst, TensorView src) {
  require<ShapeError>(dst.dtype() == src.dtype() && dst.numel() == src.numel(), "[copy] {} {} into {} {}",
                      name_of(src.dtype()), src.shape().str(), name_of(dst.dtype()), dst.shape().str());
  run<Op::copy>(ctx, dst, src);
}

void convert(Context& ctx, TensorView dst, TensorView src) {
  const bool down = dst.dtype() == DType::BF16 && src.dtype() == DType::F32,
             up = dst.dtype() == DType::F32 && src.dtype() == DType::BF16;
  require<ShapeError>((down || up) && dst.numel() == src.numel(), "[convert] {} {} into {} {}", name_of(src.dtype()),
                      src.shape().str(), name_of(dst.dtype()), dst.shape().str());
  run<Op::convert>(ctx, dst, src);
}

void add(Context& ctx, TensorView y, TensorView x) {
  expect("add", "x", x, ctx.activations, y.shape());
  expect("add", "y", y, ctx.activations, y.shape());
  run<Op::add>(ctx, activation(y), x);
}

void random_truncated_normal(Context& ctx, TensorView x, const Philox& philox, std::uint32_t stream,
                             std::int64_t first_element, double std, double bound) {
  require<ShapeError>(x.dtype() == DType::F32, "[random_truncated_normal] x is {}, expected f32", name_of(x.dtype()));
  require<ShapeError>(std > 0 && bound > 0, "[random_truncated_normal] std = {} and bound = {} must be positive", std,
                      bound);
  run<Op::random_truncated_normal>(ctx, x, philox, stream, first_element, std, bound);
}

void copy_to_host(Context& ctx, void* dst, TensorView src) {
  run<Op::copy_to_host>(ctx, Work{.bytes = bytes_of(src)}, dst, src);  // a device would be waited for: counted in tests
}

void copy_from_host(Context& ctx, TensorView dst, const void* src) {
  run<Op::copy_from_host>(ctx, Work{.bytes = bytes_of(dst)}, dst, src);
}

}  // namespace emox::ops
