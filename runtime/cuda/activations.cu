// SwiGLU and its gradient. Both are bound by memory: a warp a row, its lanes side by side on the row's pieces of 16
// bytes, so that every access of a warp is 512 contiguous bytes. The gates' gradient, a dot product along a row, is
// then one reduction over a warp, always in the same order.
#include <type_traits>

#include "runtime/cuda/kernels.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/pieces.h"

namespace emox::cuda {
namespace {

constexpr int kSwigluThreads = 256, kSwigluRows = kSwigluThreads / kWarp;  // rows a block

/// 1 / (1 + e^-x), for |x| > 87.3 as at 87.3, as on the CPU; NaN passes through. e^x to the last place for T = float.
template <typename T>
__device__ __forceinline__ float sigmoid_of(float x) {
  constexpr float limit = 87.3F;
  float y = -x;
  y = y < -limit ? -limit : (y > limit ? limit : y);
  if constexpr (std::is_same_v<T, float>)
    return 1.0F / (1.0F + expf(y));
  else
    return 1.0F / (1.0F + __expf(y));
}

template <typename T, int piece>
__global__ void __launch_bounds__(kSwigluThreads)
    swiglu_kernel(T* a, const T* h, const float* gates, std::int64_t rows, std::int64_t width) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kSwigluRows + warp;
  if (row >= rows) return;
  const T *u = h + row * 2 * width, *v = u + width;
  T* out = a + row * width;
  const float gate = gates != nullptr ? gates[row] : 1.0F;
  for (std::int64_t i = lane * piece; i < width; i += kWarp * piece) {
    float ui[piece], vi[piece], y[piece];
    load_piece(ui, u + i);
    load_piece(vi, v + i);
#pragma unroll
    for (int j = 0; j < piece; ++j) y[j] = gate * (ui[j] * sigmoid_of<T>(ui[j])) * vi[j];
    store_piece(out + i, y);
  }
}

// dh may be h, and a may be da: a lane has read a piece of all inputs before it writes any output there, and no other
// lane reads that piece.
template <typename T, int piece>
__global__ void __launch_bounds__(kSwigluThreads)
    swiglu_backward_kernel(T* dh, T* a, float* dgates, const T* da, const T* h, const float* gates, std::int64_t rows,
                           std::int64_t width) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kSwigluRows + warp;
  if (row >= rows) return;
  const T *u = h + row * 2 * width, *v = u + width, *d = da + row * width;
  T *du = dh + row * 2 * width, *dv = du + width, *out = a + row * width;
  const float gate = gates != nullptr ? gates[row] : 1.0F;
  float dot = 0;
  for (std::int64_t i = lane * piece; i < width; i += kWarp * piece) {
    float ui[piece], vi[piece], di[piece], y[piece];
    load_piece(ui, u + i);
    load_piece(vi, v + i);
    load_piece(di, d + i);
#pragma unroll
    for (int j = 0; j < piece; ++j) {
      const float s = sigmoid_of<T>(ui[j]), silu = ui[j] * s, gd = gate * di[j];
      dot += di[j] * silu * vi[j];
      y[j] = gate * silu * vi[j];
      di[j] = gd * silu;
      ui[j] = gd * vi[j] * s * (1.0F + ui[j] * (1.0F - s));
    }
    store_piece(du + i, ui);
    store_piece(dv + i, di);
    store_piece(out + i, y);
  }
  dot = over_warp(dot, Plus());
  if (dgates != nullptr && lane == 0) dgates[row] = dot;
}

}  // namespace

void swiglu(Context& ctx, TensorView a, TensorView h, TensorView gates) {
  by_type(ctx.activations, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t rows = a.dim(0), width = a.dim(1);
    const bool wide = in_pieces<T>(width, {a.raw(), h.raw()});
    launch(queue_of(ctx), ops::Op::swiglu, wide ? swiglu_kernel<T, kPiece<T>> : swiglu_kernel<T, 1>,
           {blocks_of(rows, kSwigluRows), kSwigluThreads}, a.data<T>(), h.data<T>(),
           gates.null() ? nullptr : gates.data<float>(), rows, width);
  });
}

void swiglu_backward(Context& ctx, TensorView dh, TensorView a, TensorView dgates, TensorView da, TensorView h,
                     TensorView gates) {
  by_type(ctx.activations, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t rows = da.dim(0), width = da.dim(1);
    const bool wide = in_pieces<T>(width, {dh.raw(), a.raw(), da.raw(), h.raw()});
    launch(queue_of(ctx), ops::Op::swiglu_backward,
           wide ? swiglu_backward_kernel<T, kPiece<T>> : swiglu_backward_kernel<T, 1>,
           {blocks_of(rows, kSwigluRows), kSwigluThreads}, dh.data<T>(), a.data<T>(),
           dgates.null() ? nullptr : dgates.data<float>(), da.data<T>(), h.data<T>(),
           gates.null() ? nullptr : gates.data<float>(), rows, width);
  });
}

}  // namespace emox::cuda
