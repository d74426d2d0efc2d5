// Attention's gradient, without atomics: dk and dv by tiles of keys, which meet the queries behind them, and dq by
// tiles of queries, which meet the keys before them. Scores are made again in both, seven products for five of a kernel
// that adds dq up from everywhere, but every sum has one owner and one order.
//
// In both kernels a warp's rows stay in registers while tiles of 32 rows of the other side go through two buffers of
// shared memory: one arrives while the other is used, with one barrier a tile.
#include "runtime/cuda/attention_tiles.h"
#include "runtime/cuda/kernels.h"
#include "runtime/telemetry/spans.h"

namespace emox::cuda {
namespace {

constexpr int kDeltaThreads = 256, kDeltaWarps = kDeltaThreads / kWarp;

// delta[head, token] = <dout, out>: a warp a token and head.
template <typename T, int piece>
__global__ void __launch_bounds__(kDeltaThreads)
    attention_delta_kernel(float* delta, const T* dout, const T* out, std::int64_t tokens, int heads, int head_dim) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t item = static_cast<std::int64_t>(blockIdx.x) * kDeltaWarps + warp;  // heads of a token first
  if (item >= tokens * heads) return;
  const T *g = dout + item * head_dim, *o = out + item * head_dim;
  float sum = 0;
  for (int i = lane * piece; i < head_dim; i += kWarp * piece) {
    float x[piece], y[piece];
    load_piece(x, g + i);
    load_piece(y, o + i);
#pragma unroll
    for (int j = 0; j < piece; ++j) sum += x[j] * y[j];
  }
  sum = over_warp(sum, Plus());
  if (lane == 0) delta[item % heads * tokens + item / heads] = sum;
}

constexpr int kBackwardWarps = 4, kBackwardThreads = kBackwardWarps * kWarp, kBackwardStages = 2;

// What one of the kernels has in a block: four warps of m * 16 rows, and tiles of n rows of the other side.
template <int d, int m, int n>
struct BackwardShape {
  static constexpr int kDim = d, kM = m, kN = n, kWarpRows = 16 * kM, kRows = kBackwardWarps * kWarpRows;
  struct Tiles {
    HeadTile<kRows, d> a, b;                                         // the block's rows
    HeadTile<kN, d> others[kBackwardStages], more[kBackwardStages];  // of the other side
    float lse[kBackwardStages][kN], delta[kBackwardStages][kN];      // of queries, where they are the other side
  };
  union Shared {
    Tiles tiles;
    FloatRows<kRows, d> rows;
  };
};
// dk and dv of 32 keys a warp would not fit in registers if heads are wide.
template <int d>
using KeyShape = BackwardShape<d, d == 128 ? 1 : 2, 32>;
template <int d>
using QueryShape = BackwardShape<d, 2, 32>;

// Scores -> weights exp(score - lse), and the weights' gradients -> those of the scores, but for the scale. A query's
// lse is in powers of 2. visible(row, column): whether the pair counts.
template <int m, int n, typename Lse, typename Delta, typename Visible>
__device__ __forceinline__ void softmax_backward(RowBlock<m, n>& weights, RowBlock<m, n>& grads, float factor,
                                                 const Lse& lse, const Delta& delta, bool masked,
                                                 const Visible& visible) {
  weights.for_each([&](float& x, int r, int column) { x = exp2_fast(x * factor - lse(r, column)); });
  grads.for_each([&](float& x, int r, int column) { x -= delta(r, column); });
  if (masked) {
    weights.for_each([&](float& x, int r, int column) {
      if (!visible(r, column)) x = 0.0F;
    });
    grads.for_each([&](float& x, int r, int column) {
      if (!visible(r, column)) x = 0.0F;
    });
  }
#pragma unroll
  for (int b = 0; b < m; ++b)
#pragma unroll
    for (int j = 0; j < n / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) grads.at[b][j][i] *= weights.at[b][j][i];
}

template <typename S>
__global__ void __launch_bounds__(kBackwardThreads, S::kDim == 32 ? 3 : 2)
    attention_key_gradient_kernel(AttentionTask<Bf16> task, AttentionGradient<Bf16> gradient) {
  typename S::Shared& shared = shared_memory<typename S::Shared>();
  typename S::Tiles& s = shared.tiles;
  const TileAt at = tile_at(task.heads, S::kRows, false);
  const int first = static_cast<int>(at.first), tokens = static_cast<int>(task.tokens);
  const int last = first + S::kRows <= tokens ? first + S::kRows - 1 : tokens - 1, end = task.ends[last];
  const int thread = static_cast<int>(threadIdx.x);
  const WarpTokens own = WarpTokens::of<S::kWarpRows>(first, tokens);
  // Where the documents of the first and the last of the warp's keys end.
  const int low_end = own.idle ? 0 : task.ends[own.low], high_end = own.idle ? 0 : task.ends[own.high];
  const std::int64_t statistics = at.head * task.tokens;
  const auto fetch = [&](int query, int stage) {
    fetch_tile<kBackwardThreads>(s.others[stage], task.q, query, tokens, at.head, task.head_dim);
    fetch_tile<kBackwardThreads>(s.more[stage], gradient.dout, query, tokens, at.head, task.head_dim);
    if (thread < S::kN) {
      const bool valid = query + thread < tokens;
      s.lse[stage][thread] = valid ? gradient.lse[statistics + query + thread] * kLog2E : 0.0F;
      s.delta[stage][thread] = valid ? gradient.delta[statistics + query + thread] : 0.0F;
    }
  };
  RowBlock<S::kM, S::kDim> dk, dv;
  dk.clear();
  dv.clear();
  fetch_tile<kBackwardThreads>(s.a, task.k, first, tokens, at.head, task.head_dim);
  fetch_tile<kBackwardThreads>(s.b, task.v, first, tokens, at.head, task.head_dim);
  fetch(first, 0);
  copy_async_commit();
  int stage = 0;
  for (int query = first; query < end; query += S::kN, stage ^= 1) {
    copy_async_wait<0>();
    __syncthreads();  // this tile is there, and nobody reads the one before it any more
    if (query + S::kN < end) fetch(query + S::kN, stage ^ 1);
    copy_async_commit();
    const int last_query = query + S::kN - 1;
    if (own.idle || last_query < own.low || query >= high_end) continue;
    const bool masked = query < own.high || last_query >= low_end;
    int key_end[2 * S::kM] = {};
    if (masked) {
#pragma unroll
      for (int r = 0; r < 2 * S::kM; ++r) {
        const int key = own.low + lane_row(r);
        key_end[r] = key < tokens ? task.ends[key] : 0;
      }
    }
    RowBlock<S::kM, S::kN> weights, grads;
    row_products(weights, s.a, own.row, s.others[stage]);
    row_products(grads, s.b, own.row, s.more[stage]);
    softmax_backward(
        weights, grads, task.scale * kLog2E, [&](int, int column) { return s.lse[stage][column]; },
        [&](int, int column) { return s.delta[stage][column]; }, masked,
        [&](int r, int column) { return query + column >= own.low + lane_row(r) && query + column < key_end[r]; });
    add_weighted_rows(dv, weights, s.more[stage]);
    add_weighted_rows(dk, grads, s.others[stage]);
  }
  const int rows = last + 1 - first;
  __syncthreads();  // the tiles' memory becomes the gradients'
  put_rows(shared.rows, own.row, dk);
  __syncthreads();
  write_head(gradient.dk, shared.rows, at, rows, task.head_dim, task.scale, gradient.turn);
  __syncthreads();  // dk is written, dv may follow
  put_rows(shared.rows, own.row, dv);
  __syncthreads();
  write_head(gradient.dv, shared.rows, at, rows, task.head_dim, 1.0F, Turn{});
}

template <typename S>
__global__ void __launch_bounds__(kBackwardThreads, S::kDim == 128 ? 2 : 3)
    attention_query_gradient_kernel(AttentionTask<Bf16> task, AttentionGradient<Bf16> gradient) {
  typename S::Shared& shared = shared_memory<typename S::Shared>();
  typename S::Tiles& s = shared.tiles;
  const TileAt at = tile_at(task.heads, S::kRows, true);
  const int first = static_cast<int>(at.first), tokens = static_cast<int>(task.tokens);
  const int end = first + S::kRows < tokens ? first + S::kRows : tokens;
  const WarpTokens own = WarpTokens::of<S::kWarpRows>(first, tokens);
  // Where the documents of the first and the last of the warp's queries start.
  const int low_start = own.idle ? 0 : task.starts[own.low], high_start = own.idle ? 0 : task.starts[own.high];
  float lse[2 * S::kM], delta[2 * S::kM];
#pragma unroll
  for (int r = 0; r < 2 * S::kM; ++r) {
    const int query = own.low + lane_row(r);
    const std::int64_t statistic = at.head * task.tokens + query;
    lse[r] = query < tokens ? gradient.lse[statistic] * kLog2E : 0.0F;
    delta[r] = query < tokens ? gradient.delta[statistic] : 0.0F;
  }
  const auto fetch = [&](int key, int stage) {
    fetch_tile<kBackwardThreads>(s.others[stage], task.k, key, tokens, at.head, task.head_dim);
    fetch_tile<kBackwardThreads>(s.more[stage], task.v, key, tokens, at.head, task.head_dim);
  };
  RowBlock<S::kM, S::kDim> dq;
  dq.clear();
  const int first_key = task.starts[first] / S::kN * S::kN;
  fetch_tile<kBackwardThreads>(s.a, task.q, first, tokens, at.head, task.head_dim);
  fetch_tile<kBackwardThreads>(s.b, gradient.dout, first, tokens, at.head, task.head_dim);
  fetch(first_key, 0);
  copy_async_commit();
  int stage = 0;
  for (int key = first_key; key < end; key += S::kN, stage ^= 1) {
    copy_async_wait<0>();
    __syncthreads();  // this tile is there, and nobody reads the one before it any more
    if (key + S::kN < end) fetch(key + S::kN, stage ^ 1);
    copy_async_commit();
    const int last_key = key + S::kN - 1;
    if (own.idle || key > own.high || last_key < low_start) continue;
    const bool masked = last_key > own.low || key < high_start;
    int start[2 * S::kM] = {};
    if (masked) {
#pragma unroll
      for (int r = 0; r < 2 * S::kM; ++r) {
        const int query = own.low + lane_row(r);
        start[r] = query < tokens ? task.starts[query] : tokens;
      }
    }
    RowBlock<S::kM, S::kN> weights, grads;
    row_products(weights, s.a, own.row, s.others[stage]);
    row_products(grads, s.b, own.row, s.more[stage]);
    softmax_backward(
        weights, grads, task.scale * kLog2E, [&](int r, int) { return lse[r]; }, [&](int r, int) { return delta[r]; },
        masked, [&](int r, int column) { return key + column <= own.low + lane_row(r) && key + column >= start[r]; });
    add_weighted_rows(dq, grads, s.others[stage]);
  }
  __syncthreads();  // the tiles' memory becomes the gradient's
  put_rows(shared.rows, own.row, dq);
  __syncthreads();
  write_head(gradient.dq, shared.rows, at, end - first, task.head_dim, task.scale, gradient.turn);
}

template <typename T>
void launch_delta(Queue& q, float* delta, const TensorView& dout, const TensorView& out, int heads) {
  const std::int64_t tokens = out.dim(0);
  const int head_dim = static_cast<int>(out.dim(1)) / heads;
  const bool wide = in_pieces<T>(head_dim, {dout.raw(), out.raw()});
  launch(q, ops::Op::attention_backward, wide ? attention_delta_kernel<T, kPiece<T>> : attention_delta_kernel<T, 1>,
         {blocks_of(tokens * heads, kDeltaWarps), kDeltaThreads}, delta, dout.data<T>(), out.data<T>(), tokens, heads,
         head_dim);
}

}  // namespace

void attention_backward(Context& ctx, TensorView dqkv, TensorView dout, TensorView out, TensorView lse, TensorView qkv,
                        TensorView segments, int heads, const ops::Rotation& rotation) {
  const Span span(ctx, "attention_backward", 0, static_cast<double>(2 * qkv.bytes() + 2 * out.bytes()));
  if (out.numel() == 0) return;
  constexpr auto op = ops::Op::attention_backward;
  Queue& q = queue_of(ctx);
  const std::int64_t width = out.dim(1);
  const AttentionScratch scratch = attention_scratch(ctx, qkv, rotation, lse.numel());
  by_type(ctx.activations, [&](auto zero) {
    using T = decltype(zero);
    const AttentionTask<T> task = attention_task<T>(ctx, op, scratch, qkv, segments, heads, rotation);
    launch_delta<T>(q, scratch.more, dout, out, heads);
    T* to = dqkv.data<T>();
    const AttentionGradient<T> gradient{{dout.data<T>(), width}, lse.data<float>(),       scratch.more,
                                        {to, 3 * width},         {to + width, 3 * width}, {to + 2 * width, 3 * width},
                                        turn_of(rotation)};
    if constexpr (std::is_same_v<T, Bf16>) {
      if (for_tensor_cores(ctx, task.head_dim, {qkv.raw(), dout.raw(), to, gradient.turn.cos, gradient.turn.sin})) {
        by_head_width(task.head_dim, [&](auto d) {
          using Keys = KeyShape<d.value>;
          using Queries = QueryShape<d.value>;
          launch(q, op, attention_key_gradient_kernel<Keys>,
                 {attention_blocks(task.tokens, heads, Keys::kRows), kBackwardThreads, sizeof(typename Keys::Shared)},
                 task, gradient);
          launch(q, op, attention_query_gradient_kernel<Queries>,
                 {attention_blocks(task.tokens, heads, Queries::kRows), kBackwardThreads,
                  sizeof(typename Queries::Shared)},
                 task, gradient);
        });
        return;
      }
    }
    attention_simt_backward(q, task, gradient);
  });
}

}  // namespace emox::cuda
