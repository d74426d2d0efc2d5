// Moving rows and elements: into expert order and back.
//
// A warp has a row, whatever its width: 131k rows of 4 KiB are 16k blocks, and a lane has several 16-byte accesses in
// flight. Rows that are not whole aligned pieces of 16 bytes go by single elements. Sums are f32, in the order of the
// slots, rounded once.
#include "runtime/cuda/device.h"
#include "runtime/cuda/kernels.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/pieces.h"

namespace emox::cuda {
namespace {

using ops::Op;

constexpr int kRowThreads = 256, kRowsInFlight = 4;

/// Calls f with what a lane moves at once: 16 bytes, or one element of T.
template <typename T, typename F>
void by_pieces(bool sixteen, F&& f) {
  if (sixteen)
    f(uint4{});
  else
    f(T{});
}

__device__ inline std::int64_t row_of_warp() {
  return (static_cast<std::int64_t>(blockIdx.x) * kRowThreads + threadIdx.x) / kWarp;
}

template <typename Piece>
__global__ void __launch_bounds__(kRowThreads)
    gather_rows_kernel(Piece* out, const Piece* x, const std::int32_t* index, std::int64_t rows, std::int64_t x_rows,
                       int pieces, double* fault) {
  const std::int64_t r = row_of_warp();
  if (r >= rows) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t from = index[r];
  if (from < 0 || from >= x_rows) {
    if (lane == 0) report_fault(fault, Op::gather_rows, 3, r);
    return;
  }
  const Piece* const in = x + from * pieces;
  Piece* const to = out + r * pieces;
  int i = lane;
  for (; i + (kRowsInFlight - 1) * kWarp < pieces; i += kRowsInFlight * kWarp) {
    Piece v[kRowsInFlight];
#pragma unroll
    for (int j = 0; j < kRowsInFlight; ++j) v[j] = in[i + j * kWarp];
#pragma unroll
    for (int j = 0; j < kRowsInFlight; ++j) to[i + j * kWarp] = v[j];
  }
  for (; i < pieces; i += kWarp) to[i] = in[i];
}

template <typename T, typename Piece>
__global__ void __launch_bounds__(kRowThreads)
    combine_rows_kernel(Piece* y, const Piece* rows, const std::int32_t* slots, std::int64_t tokens,
                        std::int64_t slots_of_token, std::int64_t row_count, std::int64_t pieces, float beta,
                        double* fault) {
  constexpr std::size_t kBytes = sizeof(Piece);
  constexpr int kElements = kBytes / sizeof(T);
  const std::int64_t t = row_of_warp();
  if (t >= tokens) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int32_t* const own = slots + t * slots_of_token;
  for (std::int64_t j = lane; j < slots_of_token; j += kWarp)
    if (own[j] < -1 || own[j] >= row_count) report_fault(fault, Op::combine_rows, 3, t * slots_of_token + j);
  for (int i = lane; i < pieces; i += kWarp) {
    float sum[kElements] = {}, v[kElements];
    if (beta != 0.0F) {
      load_piece<kElements>(sum, reinterpret_cast<const T*>(y + t * pieces + i));
#pragma unroll
      for (int e = 0; e < kElements; ++e) sum[e] = beta == 1.0F ? sum[e] : beta * sum[e];
    }
    for (std::int64_t base = 0; base < slots_of_token; base += kRowsInFlight) {
      Piece piece[kRowsInFlight];
      std::int64_t slot[kRowsInFlight];
#pragma unroll
      for (int j = 0; j < kRowsInFlight; ++j) slot[j] = base + j < slots_of_token ? own[base + j] : -1;
#pragma unroll
      for (int j = 0; j < kRowsInFlight; ++j)
        if (slot[j] >= 0 && slot[j] < row_count) piece[j] = rows[slot[j] * pieces + i];
#pragma unroll
      for (int j = 0; j < kRowsInFlight; ++j) {
        if (slot[j] < 0 || slot[j] >= row_count) continue;
        load_piece<kElements>(v, reinterpret_cast<const T*>(&piece[j]));
#pragma unroll
        for (int e = 0; e < kElements; ++e) sum[e] += v[e];
      }
    }
    store_piece<kElements>(reinterpret_cast<T*>(y + t * pieces + i), sum);
  }
}

__global__ void __launch_bounds__(kRowThreads)
    gather_elements_kernel(float* dst, const float* src, const std::int32_t* index, std::int64_t count,
                           std::int64_t limit, double* fault) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (i >= count) return;
  const std::int64_t from = index[i];
  if (from < 0 || from >= limit)
    report_fault(fault, Op::gather_elements, 3, i);
  else
    dst[i] = src[from];
}

__global__ void __launch_bounds__(kRowThreads)
    scatter_elements_kernel(float* dst, const float* src, const std::int32_t* index, std::int64_t count,
                            std::int64_t limit, double* fault) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (i >= count) return;
  const std::int64_t to = index[i];
  if (to < 0 || to >= limit)
    report_fault(fault, Op::scatter_elements, 3, i);
  else
    dst[to] = src[i];
}

}  // namespace

void gather_rows(Context& ctx, TensorView out, TensorView x, TensorView index) {
  Queue& q = queue_of(ctx);
  const std::int64_t rows = index.numel(), width = x.dim(1);
  if (rows == 0 || width == 0) return;
  by_type(ctx.activations, [&](auto zero) {
    by_pieces<decltype(zero)>(in_pieces<decltype(zero)>(width, {out.raw(), x.raw()}), [&](auto piece) {
      using Piece = decltype(piece);
      launch(q, Op::gather_rows, gather_rows_kernel<Piece>, {blocks_of(rows * kWarp, kRowThreads), kRowThreads},
             static_cast<Piece*>(out.raw()), static_cast<const Piece*>(x.raw()), index.data<std::int32_t>(), rows,
             x.dim(0), width * static_cast<std::int64_t>(sizeof(zero)) / static_cast<std::int64_t>(sizeof(Piece)),
             q.fault_word(ctx));
    });
  });
}

void combine_rows(Context& ctx, TensorView y, TensorView rows, TensorView slots, float beta) {
  Queue& q = queue_of(ctx);
  const std::int64_t tokens = y.dim(0), width = y.dim(1);
  if (tokens == 0 || width == 0) return;
  by_type(ctx.activations, [&](auto zero) {
    using T = decltype(zero);
    by_pieces<T>(in_pieces<T>(width, {y.raw(), rows.raw()}), [&](auto piece) {
      using Piece = decltype(piece);
      launch(q, Op::combine_rows, combine_rows_kernel<T, Piece>, {blocks_of(tokens * kWarp, kRowThreads), kRowThreads},
             static_cast<Piece*>(y.raw()), static_cast<const Piece*>(rows.raw()), slots.data<std::int32_t>(), tokens,
             slots.dim(1), rows.dim(0),
             width * static_cast<std::int64_t>(sizeof(T)) / static_cast<std::int64_t>(sizeof(Piece)), beta,
             q.fault_word(ctx));
    });
  });
}

void gather_elements(Context& ctx, TensorView dst, TensorView src, TensorView index) {
  Queue& q = queue_of(ctx);
  launch(q, Op::gather_elements, gather_elements_kernel, {blocks_of(index.numel(), kRowThreads), kRowThreads},
         dst.data<float>(), src.data<float>(), index.data<std::int32_t>(), index.numel(), src.numel(),
         q.fault_word(ctx));
}

void scatter_elements(Context& ctx, TensorView dst, TensorView src, TensorView index) {
  Queue& q = queue_of(ctx);
  launch(q, Op::scatter_elements, scatter_elements_kernel, {blocks_of(index.numel(), kRowThreads), kRowThreads},
         dst.data<float>(), src.data<float>(), index.data<std::int32_t>(), index.numel(), dst.numel(),
         q.fault_word(ctx));
}

}  // namespace emox::cuda
