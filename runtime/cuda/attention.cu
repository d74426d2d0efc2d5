// Attention forward: FlashAttention-2's order (Dao 2023) on the tensor cores. A block is 128 queries of a head, a warp
// 32 of them with their output in registers; tiles of 64 keys and values go through shared memory, values arriving
// while scores are made and keys while values are weighed. What a warp cannot see it skips; only tiles that some query
// sees in part are masked. Here too is what both directions begin with: documents' bounds and the rotation.
#include <cmath>

#include "runtime/cuda/attention_tiles.h"
#include "runtime/cuda/documents.h"
#include "runtime/cuda/kernels.h"
#include "runtime/cuda/scratch_arrays.h"
#include "runtime/telemetry/spans.h"

namespace emox::cuda {
namespace {

constexpr int kBoundsThreads = 256, kRotateThreads = 128;

__global__ void __launch_bounds__(kBoundsThreads)
    attention_bounds_kernel(std::int32_t* starts, std::int32_t* ends, const std::int32_t* segments, int documents,
                            std::int64_t tokens) {
  const std::int64_t token = static_cast<std::int64_t>(blockIdx.x) * kBoundsThreads + threadIdx.x;
  if (token >= tokens) return;
  const int document = document_of(segments, documents, token);
  starts[token] = segments[document];
  ends[token] = segments[document + 1];
}

// rotated[token] = the token's queries, then its keys, turned to its position. A block a token.
template <typename T, int piece>
__global__ void __launch_bounds__(kRotateThreads)
    attention_rotate_kernel(T* rotated, const T* qkv, Turn turn, std::int64_t width, int head_dim) {
  const std::int64_t token = blockIdx.x;
  const int half = head_dim / 2, pieces = half / piece;
  const int count = static_cast<int>(2 * width / head_dim) * pieces;
  const std::int64_t angles = static_cast<std::int64_t>(turn.positions[token]) * half;
  const T* from = qkv + token * 3 * width;
  T* to = rotated + token * 2 * width;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kRotateThreads) {
    const int d = i % pieces * piece;
    const std::int64_t column = static_cast<std::int64_t>(i / pieces) * head_dim + d;
    float u[piece], v[piece], c[piece], s[piece];
    load_piece(u, from + column);
    load_piece(v, from + column + half);
    load_floats(c, turn.cos + angles + d);
    load_floats(s, turn.sin + angles + d);
#pragma unroll
    for (int j = 0; j < piece; ++j) {
      const float x = u[j];
      u[j] = x * c[j] - v[j] * s[j];
      v[j] = v[j] * c[j] + x * s[j];
    }
    store_piece(to + column, u);
    store_piece(to + column + half, v);
  }
}

// A block is four warps of 32 queries.
constexpr int kForwardBlocks = 2, kForwardWarps = 4, kForwardThreads = kForwardWarps * kWarp;
constexpr int kForwardRows = 16 * kForwardBlocks, kForwardQueries = kForwardWarps * kForwardRows, kForwardKeys = 64;

template <int d>
struct ForwardTiles {
  HeadTile<kForwardQueries, d> q;
  HeadTile<kForwardKeys, d> k, v;
};
template <int d>
union ForwardShared {
  ForwardTiles<d> tiles;
  FloatRows<kForwardQueries, d> out;
};

// A running softmax of a lane's rows: the largest score before scaling, and the lane's part of the sum.
struct RunningSoftmax {
  float high[2 * kForwardBlocks], sum[2 * kForwardBlocks];
};

// Scores -> weights relative to the new maximum; earlier sums and outputs shrink accordingly. `factor` leads from
// scores to powers of 2.
template <int m, int n, int d>
__device__ __forceinline__ void softmax_rows(RowBlock<m, n>& s, RunningSoftmax& running, RowBlock<m, d>& out,
                                             float factor) {
  float most[2 * m], base[2 * m], shrink[2 * m];
#pragma unroll
  for (int r = 0; r < 2 * m; ++r) most[r] = running.high[r];
  s.for_each([&](float x, int r, int) { most[r] = fmaxf(most[r], x); });
#pragma unroll
  for (int r = 0; r < 2 * m; ++r) {
    most[r] = fmaxf(most[r], __shfl_xor_sync(kAllLanes, most[r], 1));
    most[r] = fmaxf(most[r], __shfl_xor_sync(kAllLanes, most[r], 2));
    base[r] = most[r] == -INFINITY ? 0.0F : most[r] * factor;  // a row that has seen nothing yet
    shrink[r] = exp2_fast(running.high[r] * factor - base[r]);
    running.high[r] = most[r];
    running.sum[r] *= shrink[r];
  }
  s.for_each([&](float& x, int r, int) {
    x = exp2_fast(x * factor - base[r]);
    running.sum[r] += x;
  });
  out.for_each([&](float& x, int r, int) { x *= shrink[r]; });
}

template <int d>
__global__ void __launch_bounds__(kForwardThreads, d == 128 ? 2 : 3)
    attention_forward_kernel(AttentionTask<Bf16> task, AttentionOutputs<Bf16> outputs) {
  ForwardShared<d>& shared = shared_memory<ForwardShared<d>>();
  ForwardTiles<d>& s = shared.tiles;
  const TileAt at = tile_at(task.heads, kForwardQueries, true);
  const int first = static_cast<int>(at.first), tokens = static_cast<int>(task.tokens);
  const int end = first + kForwardQueries < tokens ? first + kForwardQueries : tokens;
  const WarpTokens own = WarpTokens::of<kForwardRows>(first, tokens);
  // Where the documents of the first and the last of the warp's queries start.
  const int low_start = own.idle ? 0 : task.starts[own.low], high_start = own.idle ? 0 : task.starts[own.high];
  RowBlock<kForwardBlocks, d> out;
  out.clear();
  RunningSoftmax running;
#pragma unroll
  for (int r = 0; r < 2 * kForwardBlocks; ++r) running.high[r] = -INFINITY, running.sum[r] = 0.0F;
  const int first_key = task.starts[first] / kForwardKeys * kForwardKeys;
  fetch_tile<kForwardThreads>(s.q, task.q, first, tokens, at.head, task.head_dim);
  fetch_tile<kForwardThreads>(s.k, task.k, first_key, tokens, at.head, task.head_dim);
  copy_async_commit();
  for (int key = first_key; key < end; key += kForwardKeys) {
    const int last_key = key + kForwardKeys - 1;
    const bool seen = !own.idle && key <= own.high && last_key >= low_start;
    copy_async_wait<0>();
    __syncthreads();  // the keys are there, and nobody reads the values before them any more
    fetch_tile<kForwardThreads>(s.v, task.v, key, tokens, at.head, task.head_dim);
    copy_async_commit();
    RowBlock<kForwardBlocks, kForwardKeys> scores;
    if (seen) row_products(scores, s.q, own.row, s.k);
    copy_async_wait<0>();
    __syncthreads();  // the values are there, and nobody reads the keys any more
    if (key + kForwardKeys < end)
      fetch_tile<kForwardThreads>(s.k, task.k, key + kForwardKeys, tokens, at.head, task.head_dim);
    copy_async_commit();
    if (!seen) continue;
    if (last_key > own.low || key < high_start) {
      int start[2 * kForwardBlocks];
#pragma unroll
      for (int r = 0; r < 2 * kForwardBlocks; ++r) {
        const int query = own.low + lane_row(r);
        start[r] = query < tokens ? task.starts[query] : tokens;
      }
      scores.for_each([&](float& x, int r, int column) {
        const int k = key + column;
        if (k > own.low + lane_row(r) || k < start[r]) x = -INFINITY;
      });
    }
    softmax_rows(scores, running, out, task.scale * kLog2E);
    add_weighted_rows(out, scores, s.v);
  }
  float inverse[2 * kForwardBlocks];
#pragma unroll
  for (int r = 0; r < 2 * kForwardBlocks; ++r) {
    float sum = running.sum[r];
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    inverse[r] = 1.0F / sum;
    const int query = own.low + lane_row(r);
    if (threadIdx.x % 4 == 0 && query < tokens)
      outputs.lse[at.head * task.tokens + query] = running.high[r] * task.scale + logf(sum);
  }
  out.for_each([&](float& x, int r, int) { x *= inverse[r]; });
  __syncthreads();  // the tiles' memory becomes the output's
  put_rows(shared.out, own.row, out);
  __syncthreads();
  write_head(outputs.out, shared.out, at, end - first, task.head_dim, 1.0F, Turn{});
}

}  // namespace

Turn turn_of(const ops::Rotation& r) {
  if (r.cos.null() || r.positions.numel() == 0) return {};
  return {r.positions.data<std::int32_t>(), r.cos.data<float>(), r.sin.data<float>()};
}

AttentionScratch attention_scratch(Context& ctx, const TensorView& qkv, const ops::Rotation& rotation,
                                   std::int64_t more) {
  const std::int64_t tokens = qkv.dim(0);
  const bool turns = turn_of(rotation).positions != nullptr;
  const auto [starts, ends, rotated, other] = scratch_arrays<std::int32_t, std::int32_t, unsigned char, float>(
      queue_of(ctx), tokens, tokens, turns ? qkv.bytes() / 3 * 2 : 0, more);
  return {starts, ends, turns ? rotated : nullptr, other};
}

template <typename T>
AttentionTask<T> attention_task(Context& ctx, ops::Op op, const AttentionScratch& scratch, const TensorView& qkv,
                                const TensorView& segments, int heads, const ops::Rotation& rotation) {
  Queue& q = queue_of(ctx);
  const std::int64_t tokens = qkv.dim(0), width = qkv.dim(1) / 3;
  const int head_dim = static_cast<int>(width / heads), half = head_dim / 2;
  launch(q, op, attention_bounds_kernel, {blocks_of(tokens, kBoundsThreads), kBoundsThreads}, scratch.starts,
         scratch.ends, segments.data<std::int32_t>(), static_cast<int>(segments.numel() - 1), tokens);
  const T* from = qkv.data<T>();
  HeadRows<const T> queries{from, 3 * width}, keys{from + width, 3 * width};
  if (scratch.rotated != nullptr) {
    T* rotated = static_cast<T*>(scratch.rotated);
    const Turn turn = turn_of(rotation);
    const bool wide = half % kPiece<T> == 0 && in_pieces<T>(width, {from, turn.cos, turn.sin});
    launch(q, op, wide ? attention_rotate_kernel<T, kPiece<T>> : attention_rotate_kernel<T, 1>,
           {blocks_of(tokens, 1), kRotateThreads}, rotated, from, turn, width, head_dim);
    queries = {rotated, 2 * width}, keys = {rotated + width, 2 * width};
  }
  return {queries,        keys,         {from + 2 * width, 3 * width},
          scratch.starts, scratch.ends, tokens,
          heads,          head_dim,     1.0F / std::sqrt(static_cast<float>(head_dim))};
}
template AttentionTask<float> attention_task(Context&, ops::Op, const AttentionScratch&, const TensorView&,
                                             const TensorView&, int, const ops::Rotation&);
template AttentionTask<Bf16> attention_task(Context&, ops::Op, const AttentionScratch&, const TensorView&,
                                            const TensorView&, int, const ops::Rotation&);

bool for_tensor_cores(const Context& ctx, int head_dim, std::initializer_list<const void*> rows) {
  return ctx.activations == DType::BF16 && head_dim <= kWidestHead && in_pieces<Bf16>(head_dim, rows);
}

void attention(Context& ctx, TensorView out, TensorView lse, TensorView qkv, TensorView segments, int heads,
               const ops::Rotation& rotation) {
  const Span span(ctx, "attention", 0, static_cast<double>(qkv.bytes() + out.bytes()));
  if (out.numel() == 0) return;
  constexpr auto op = ops::Op::attention;
  Queue& q = queue_of(ctx);
  const AttentionScratch scratch = attention_scratch(ctx, qkv, rotation, 0);
  by_type(ctx.activations, [&](auto zero) {
    using T = decltype(zero);
    const AttentionTask<T> task = attention_task<T>(ctx, op, scratch, qkv, segments, heads, rotation);
    const AttentionOutputs<T> outputs{{out.data<T>(), out.dim(1)}, lse.data<float>()};
    if constexpr (std::is_same_v<T, Bf16>) {
      if (for_tensor_cores(ctx, task.head_dim, {qkv.raw(), out.raw()})) {
        by_head_width(task.head_dim, [&](auto d) {
          launch(
              q, op, attention_forward_kernel<d.value>,
              {attention_blocks(task.tokens, heads, kForwardQueries), kForwardThreads, sizeof(ForwardShared<d.value>)},
              task, outputs);
        });
        return;
      }
    }
    attention_simt(q, task, outputs);
  });
}

}  // namespace emox::cuda
