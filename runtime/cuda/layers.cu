// Embedding, RMSNorm and the rotary tables. All are bound by memory.
//
// Forward a warp has a row, its lanes side by side on pieces of 16 bytes. The norm's gradient is a block a stretch of
// rows: the sum for dscale stays with the threads that own the columns, one partial row a block, and a second kernel
// adds these rows in their order. The embedding's gradient is in embedding_backward.cu.
#include "runtime/core/idx.h"
#include "runtime/cpu/kernels.h"
#include "runtime/cuda/kernels.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/pieces.h"

namespace emox::cuda {
namespace {

constexpr int kRowThreads = 256, kRowWarps = kRowThreads / kWarp;

template <typename T, int piece>
__global__ void __launch_bounds__(kRowThreads)
    embedding_kernel(T* y, const std::int32_t* ids, const T* table, std::int64_t tokens, std::int64_t width) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t token = static_cast<std::int64_t>(blockIdx.x) * kRowWarps + warp;
  if (token >= tokens) return;
  const T* from = table + ids[token] * width;
  T* to = y + token * width;
  for (std::int64_t i = lane * piece; i < width; i += kWarp * piece) {
    if constexpr (piece == 1)
      to[i] = from[i];
    else
      *reinterpret_cast<uint4*>(to + i) = *reinterpret_cast<const uint4*>(from + i);
  }
}

// Pieces of a row that a lane keeps in registers from the sum to the product; rows may be as wide as kWarp times that.
constexpr int kHeldPieces = 8;

// held: kHeldPieces, or 0 where rows are wider: they are read twice then.
template <typename T, int piece, int held>
__global__ void __launch_bounds__(kRowThreads)
    rms_norm_kernel(T* y, float* rstd, const T* x, const T* scale, float eps, std::int64_t rows, std::int64_t width) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kRowWarps + warp;
  if (row >= rows) return;
  const T* from = x + row * width;
  T* to = y + row * width;
  const auto piece_at = [&](int number) { return static_cast<std::int64_t>(number * kWarp + lane) * piece; };
  float kept[held > 0 ? held : 1][piece];
  float sum = 0;
  const auto add_squares = [&](const float(&v)[piece]) {
#pragma unroll
    for (int j = 0; j < piece; ++j) sum += v[j] * v[j];
  };
  if constexpr (held > 0) {
#pragma unroll
    for (int n = 0; n < held; ++n) {
      if (piece_at(n) >= width) continue;
      load_piece(kept[n], from + piece_at(n));
      add_squares(kept[n]);
    }
  } else {
    for (std::int64_t i = lane * piece; i < width; i += kWarp * piece) {
      load_piece(kept[0], from + i);
      add_squares(kept[0]);
    }
  }
  const float r = 1.0F / sqrtf(over_warp(sum, Plus()) / static_cast<float>(width) + eps);
  if (lane == 0) rstd[row] = r;
  const auto write = [&](const float(&v)[piece], std::int64_t i) {
    float s[piece];
    load_piece(s, scale + i);
#pragma unroll
    for (int j = 0; j < piece; ++j) s[j] = v[j] * r * s[j];
    store_piece(to + i, s);
  };
  if constexpr (held > 0) {
#pragma unroll
    for (int n = 0; n < held; ++n)
      if (piece_at(n) < width) write(kept[n], piece_at(n));
  } else {
    for (std::int64_t i = lane * piece; i < width; i += kWarp * piece) {
      load_piece(kept[0], from + i);
      write(kept[0], i);
    }
  }
}

// Blocks of the norm's gradient: about four for each of an H200's processors. A fixed number, so that the order of the
// sums depends on nothing but the shape.
constexpr std::int64_t kNormBlocks = 528;
constexpr int kSharedColumns = 4096;

struct NormBackwardShared {
  float slots[33];
  alignas(16) float sums[kSharedColumns];
};

// partial[block, width] becomes the block's part of dscale. It is summed in shared memory if rows are not too wide for
// that, and where it will lie if they are: each thread touches its own columns only.
template <typename T, int piece>
__global__ void __launch_bounds__(kRowThreads)
    rms_norm_backward_kernel(T* dx, float* partial, const T* dy, const T* x, const float* rstd, const T* scale,
                             std::int64_t rows, std::int64_t width, std::int64_t rows_a_block) {
  NormBackwardShared& s = shared_memory<NormBackwardShared>();
  float* const own = partial + blockIdx.x * width;
  float* const sums = width <= kSharedColumns ? s.sums : own;
  const std::int64_t first = static_cast<std::int64_t>(threadIdx.x) * piece, step = kRowThreads * piece;
  for (std::int64_t i = first; i < width; i += step) {
#pragma unroll
    for (int j = 0; j < piece; ++j) sums[i + j] = 0.0F;
  }
  const std::int64_t begin = blockIdx.x * rows_a_block;
  const std::int64_t end = begin + rows_a_block < rows ? begin + rows_a_block : rows;
  for (std::int64_t row = begin; row < end; ++row) {
    const T *g = dy + row * width, *v = x + row * width;
    float dot = 0;
    for (std::int64_t i = first; i < width; i += step) {
      float gi[piece], vi[piece], si[piece];
      load_piece(gi, g + i);
      load_piece(vi, v + i);
      load_piece(si, scale + i);
#pragma unroll
      for (int j = 0; j < piece; ++j) dot += gi[j] * si[j] * vi[j];
    }
    const float r = rstd[row];
    const float c = over_block(dot, s.slots, Plus()) * r * r / static_cast<float>(width);
    T* out = dx + row * width;
    for (std::int64_t i = first; i < width; i += step) {
      float gi[piece], vi[piece], si[piece], di[piece];
      load_piece(gi, g + i);
      load_piece(vi, v + i);
      load_piece(si, scale + i);
      load_piece(di, out + i);
#pragma unroll
      for (int j = 0; j < piece; ++j) {
        di[j] += r * (gi[j] * si[j] - vi[j] * c);
        gi[j] = gi[j] * vi[j] * r;
      }
      store_piece(out + i, di);
      add_floats(sums + i, gi);
    }
  }
  if (sums == own) return;
  for (std::int64_t i = first; i < width; i += step) {
#pragma unroll
    for (int j = 0; j < piece; ++j) own[i + j] = sums[i + j];
  }
}

struct RowSumShared {
  float sums[kRowWarps][kWarp];
};

// to[width] += the sum of partial's rows: a block 32 columns, each warp every eighth row, the warps' sums in order.
__global__ void __launch_bounds__(kRowThreads)
    norm_scale_kernel(float* to, const float* partial, std::int64_t rows, std::int64_t width) {
  RowSumShared& s = shared_memory<RowSumShared>();
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kWarp + lane;
  float sum = 0;
  if (column < width) {
#pragma unroll 8
    for (std::int64_t row = warp; row < rows; row += kRowWarps) sum += partial[row * width + column];
  }
  s.sums[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || column >= width) return;
  for (int w = 1; w < kRowWarps; ++w) sum += s.sums[w][lane];
  to[column] += sum;
}

}  // namespace

void embedding(Context& ctx, TensorView y, TensorView ids, TensorView table) {
  by_type(ctx.activations, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t tokens = ids.numel(), width = table.dim(1);
    const bool wide = in_pieces<T>(width, {y.raw(), table.raw()});
    launch(queue_of(ctx), ops::Op::embedding, wide ? embedding_kernel<T, kPiece<T>> : embedding_kernel<T, 1>,
           {blocks_of(tokens, kRowWarps), kRowThreads}, y.data<T>(), ids.data<std::int32_t>(), table.data<T>(), tokens,
           width);
  });
}

void rms_norm(Context& ctx, TensorView y, TensorView rstd, TensorView x, TensorView scale, float eps) {
  by_type(ctx.activations, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t rows = x.dim(0), width = x.dim(1);
    const bool wide = in_pieces<T>(width, {y.raw(), x.raw(), scale.raw()});
    const bool narrow = width <= kHeldPieces * kWarp * kPiece<T>;
    auto* kernel = rms_norm_kernel<T, 1, 0>;
    if (wide) kernel = narrow ? rms_norm_kernel<T, kPiece<T>, kHeldPieces> : rms_norm_kernel<T, kPiece<T>, 0>;
    launch(queue_of(ctx), ops::Op::rms_norm, kernel, {blocks_of(rows, kRowWarps), kRowThreads}, y.data<T>(),
           rstd.data<float>(), x.data<T>(), scale.data<T>(), eps, rows, width);
  });
}

void rms_norm_backward_add(Context& ctx, TensorView dx, TensorView dscale, TensorView dy, TensorView x, TensorView rstd,
                           TensorView scale) {
  const std::int64_t rows = x.dim(0), width = x.dim(1);
  if (rows == 0 || width == 0) return;
  const std::int64_t rows_a_block = (rows + kNormBlocks - 1) / kNormBlocks;
  const std::int64_t blocks = (rows + rows_a_block - 1) / rows_a_block;
  Queue& q = queue_of(ctx);
  auto* partial = static_cast<float*>(q.scratch(idx(blocks * width) * sizeof(float)));
  by_type(ctx.activations, [&](auto zero) {
    using T = decltype(zero);
    const bool wide = in_pieces<T>(width, {dx.raw(), dy.raw(), x.raw(), scale.raw()});
    launch(q, ops::Op::rms_norm_backward_add,
           wide ? rms_norm_backward_kernel<T, kPiece<T>> : rms_norm_backward_kernel<T, 1>,
           {blocks_of(blocks, 1), kRowThreads, sizeof(NormBackwardShared)}, dx.data<T>(), partial, dy.data<T>(),
           x.data<T>(), rstd.data<float>(), scale.data<T>(), rows, width, rows_a_block);
  });
  launch(q, ops::Op::rms_norm_backward_add, norm_scale_kernel,
         {blocks_of(width, kWarp), kRowThreads, sizeof(RowSumShared)}, dscale.data<float>(), partial, blocks, width);
}

// On the host and in double, by the CPU's body: tables of both backends have the same bits.
void rope_tables(Context& ctx, TensorView cos, TensorView sin, double theta) {
  const Tensor host_cos({}, DType::F32, cos.shape()), host_sin({}, DType::F32, sin.shape());
  Context host;
  cpu::rope_tables(host, host_cos, host_sin, theta);
  Queue& q = queue_of(ctx);
  q.upload(cos.raw(), host_cos.view().raw(), cos.bytes());
  q.upload(sin.raw(), host_sin.view().raw(), sin.bytes());
}

}  // namespace emox::cuda
