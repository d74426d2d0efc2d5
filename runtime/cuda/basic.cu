// Elementwise ops and copies: a thread handles four pieces, of `add` 16 bytes each where the pointers allow it.
#include <algorithm>

#include "runtime/core/idx.h"
#include "runtime/cpu/kernels.h"
#include "runtime/cuda/device.h"
#include "runtime/cuda/kernels.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/pieces.h"

namespace emox::cuda {
namespace {

using ops::Op;

constexpr int kBasicThreads = 256, kEach = 4;  // pieces a thread
constexpr std::int64_t kBasicBlock = kBasicThreads * kEach;

// Calls f(i) for each piece that the thread handles: neighbours in memory go to neighbouring threads.
template <typename F>
__device__ inline void each_of(std::int64_t n, F f) {
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kBasicBlock + threadIdx.x;
#pragma unroll
  for (int j = 0; j < kEach; ++j)
    if (first + j * kBasicThreads < n) f(first + j * kBasicThreads);
}

dim3 basic_blocks(std::int64_t n) { return {static_cast<unsigned>((n + kBasicBlock - 1) / kBasicBlock)}; }

__global__ void __launch_bounds__(kBasicThreads) fill_kernel(float* x, float value, std::int64_t n) {
  each_of(n, [&](std::int64_t i) { x[i] = value; });
}

template <typename To, typename From>
__global__ void __launch_bounds__(kBasicThreads) convert_kernel(To* to, const From* from, std::int64_t n) {
  each_of(n, [&](std::int64_t i) { to[i] = from_float<To>(to_float(from[i])); });
}

// n: pieces of kElements.
template <typename T, int kElements>
__global__ void __launch_bounds__(kBasicThreads) add_kernel(T* y, const T* x, std::int64_t n) {
  each_of(n, [&](std::int64_t i) {
    float sum[kElements], more[kElements];
    load_piece<kElements>(sum, y + i * kElements);
    load_piece<kElements>(more, x + i * kElements);
#pragma unroll
    for (int e = 0; e < kElements; ++e) sum[e] += more[e];
    store_piece<kElements>(y + i * kElements, sum);
  });
}

}  // namespace

void fill(Context& ctx, TensorView x, float value) {
  launch(queue_of(ctx), Op::fill, fill_kernel, {basic_blocks(x.numel()), kBasicThreads}, x.data<float>(), value,
         x.numel());
}

void zero(Context& ctx, TensorView x) {
  if (x.bytes() == 0) return;
  Queue& queue = queue_of(ctx);
  queue.count_launch(Op::zero);
  queue.check(cudaMemsetAsync(x.raw(), 0, x.bytes(), queue.handle()), "zero");
}

void copy(Context& ctx, TensorView dst, TensorView src) {
  if (src.bytes() == 0) return;
  Queue& queue = queue_of(ctx);
  queue.count_launch(Op::copy);
  queue.check(cudaMemcpyAsync(dst.raw(), src.raw(), src.bytes(), cudaMemcpyDeviceToDevice, queue.handle()), "copy");
}

void convert(Context& ctx, TensorView dst, TensorView src) {
  Queue& queue = queue_of(ctx);
  const Shape3 shape{basic_blocks(src.numel()), kBasicThreads};
  if (dst.dtype() == DType::BF16)
    launch(queue, Op::convert, convert_kernel<Bf16, float>, shape, dst.data<Bf16>(), src.data<float>(), src.numel());
  else
    launch(queue, Op::convert, convert_kernel<float, Bf16>, shape, dst.data<float>(), src.data<Bf16>(), src.numel());
}

void add(Context& ctx, TensorView y, TensorView x) {
  by_type(ctx.activations, [&](auto zero) {
    using T = decltype(zero);
    const auto add_pieces = [&](auto kernel, std::int64_t pieces) {
      launch(queue_of(ctx), Op::add, kernel, {basic_blocks(pieces), kBasicThreads}, y.data<T>(), x.data<T>(), pieces);
    };
    if (in_pieces<T>(x.numel(), {y.raw(), x.raw()}))
      add_pieces(add_kernel<T, kPiece<T>>, x.numel() / kPiece<T>);
    else
      add_pieces(add_kernel<T, 1>, x.numel());
  });
}

// Weights begin the same on every backend: they are drawn on the host, a piece at a time.
void random_truncated_normal(Context& ctx, TensorView x, const Philox& philox, std::uint32_t stream,
                             std::int64_t first_element, double std, double bound) {
  constexpr std::int64_t kPiece = std::int64_t{1} << 22;
  Context host;
  host.threads = ctx.threads;
  const Tensor piece({}, DType::F32, {std::min(kPiece, x.numel())});
  const TensorView all = x.reshape({x.numel()});
  for (std::int64_t begin = 0; begin < x.numel(); begin += kPiece) {
    const std::int64_t n = std::min(kPiece, x.numel() - begin);
    const TensorView part = piece.view().rows(0, n);
    cpu::random_truncated_normal(host, part, philox, stream, first_element + begin, std, bound);
    copy_from_host(ctx, all.rows(begin, begin + n), part.raw());
  }
}

void copy_to_host(Context& ctx, void* dst, TensorView src) { queue_of(ctx).download(dst, src.raw(), src.bytes()); }

void copy_from_host(Context& ctx, TensorView dst, const void* src) {
  queue_of(ctx).upload(dst.raw(), src, dst.bytes());
}

}  // namespace emox::cuda
