// Attention without tensor cores: for f32, and for bf16 heads whose rows are no whole pieces. Tiles of 32 rows of
// either side lie in shared memory as f32; a thread has two rows, two columns of the scores and every sixteenth column
// of the outputs. The order is that of attention.cu and attention_backward.cu: no atomics, every sum has one owner.
#include "runtime/core/error.h"
#include "runtime/cuda/attention.h"
#include "runtime/cuda/kernels.h"

namespace emox::cuda {
namespace {

constexpr int kHeadTile = 32, kHeadThreads = 256, kHeadWarps = kHeadThreads / kWarp,
              kHeadRowsAWarp = kHeadTile / kHeadWarps;
constexpr int kHeadColumns = 16;  // threads side by side on a row

/// 32 rows of a head of at most d elements; the odd length keeps rows on different banks.
template <int d>
using SimtHead = float[kHeadTile][d + 1];
using SimtWeights = float[kHeadTile][kHeadTile + 1];

/// Rows from `end` on are zeros.
template <int d, typename T>
__device__ inline void load_tile(SimtHead<d>& to, HeadRows<const T> from, int first, int end, int head, int head_dim) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int row = warp; row < kHeadTile; row += kHeadWarps)
    for (int i = lane; i < head_dim; i += kWarp)
      to[row][i] =
          first + row < end ? to_float(*from.row(first + row, static_cast<std::int64_t>(head) * head_dim + i)) : 0.0F;
}

/// A thread's rows are 2 i and 2 i + 1, i = thread / 16, its columns of scores thread % 16 and 16 more.
__device__ inline int simt_row(int r) { return 2 * (static_cast<int>(threadIdx.x) / kHeadColumns) + r; }
__device__ inline int simt_column(int c) { return static_cast<int>(threadIdx.x) % kHeadColumns + kHeadColumns * c; }

/// s[r][c] = <row of a, row of b>
template <int d>
__device__ inline void simt_products(float (&s)[2][2], const SimtHead<d>& a, const SimtHead<d>& b, int head_dim) {
  const float *a0 = a[simt_row(0)], *a1 = a[simt_row(1)], *b0 = b[simt_column(0)], *b1 = b[simt_column(1)];
  s[0][0] = s[0][1] = s[1][0] = s[1][1] = 0.0F;
#pragma unroll 4
  for (int i = 0; i < head_dim; ++i) {
    s[0][0] += a0[i] * b0[i];
    s[0][1] += a0[i] * b1[i];
    s[1][0] += a1[i] * b0[i];
    s[1][1] += a1[i] * b1[i];
  }
}

/// The thread's elements of 32 rows of a head.
template <int d>
struct SimtHeadRows {
  static constexpr int kColumns = d / kHeadColumns;
  float at[2][kColumns] = {};

  /// += weights times the rows
  __device__ void add(const SimtWeights& weights, const SimtHead<d>& rows, int head_dim) {
#pragma unroll 2
    for (int k = 0; k < kHeadTile; ++k) {
      const float w0 = weights[simt_row(0)][k], w1 = weights[simt_row(1)][k];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        if (simt_column(c) >= head_dim) break;
        at[0][c] += w0 * rows[k][simt_column(c)];
        at[1][c] += w1 * rows[k][simt_column(c)];
      }
    }
  }
  __device__ void put(SimtHead<d>& to, int head_dim) const {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      if (simt_column(c) >= head_dim) break;
      to[simt_row(0)][simt_column(c)] = at[0][c];
      to[simt_row(1)][simt_column(c)] = at[1][c];
    }
  }
};

template <int d>
struct SimtForwardShared {
  SimtHead<d> q, k, v;
  SimtWeights weights;
  float shrink[kHeadTile];
};

template <typename T, int d>
__global__ void __launch_bounds__(kHeadThreads)
    attention_simt_kernel(AttentionTask<T> task, AttentionOutputs<T> outputs) {
  SimtForwardShared<d>& s = shared_memory<SimtForwardShared<d>>();
  const TileAt at = tile_at(task.heads, kHeadTile, false);
  const int first = static_cast<int>(at.first), tokens = static_cast<int>(task.tokens);
  const int end = first + kHeadTile < tokens ? first + kHeadTile : tokens;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  SimtHeadRows<d> out;
  // The running softmax of the warp's rows.
  float high[kHeadRowsAWarp], sum[kHeadRowsAWarp];
#pragma unroll
  for (int r = 0; r < kHeadRowsAWarp; ++r) high[r] = -INFINITY, sum[r] = 0.0F;
  load_tile<d>(s.q, task.q, first, tokens, at.head, task.head_dim);
  for (int key = task.starts[first] / kHeadTile * kHeadTile; key < end; key += kHeadTile) {
    __syncthreads();  // nobody reads the tiles before these any more
    load_tile<d>(s.k, task.k, key, tokens, at.head, task.head_dim);
    load_tile<d>(s.v, task.v, key, tokens, at.head, task.head_dim);
    __syncthreads();
    float scores[2][2];
    simt_products<d>(scores, s.q, s.k, task.head_dim);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int query = first + simt_row(r), start = query < tokens ? task.starts[query] : tokens;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int k = key + simt_column(c);
        s.weights[simt_row(r)][simt_column(c)] = k <= query && k >= start ? scores[r][c] * task.scale : -INFINITY;
      }
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kHeadRowsAWarp; ++r) {
      const int row = warp * kHeadRowsAWarp + r;
      const float score = s.weights[row][lane], most = over_warp(fmaxf(score, high[r]), Larger());
      const float base = most == -INFINITY ? 0.0F : most;  // a row that has seen nothing yet
      const float weight = expf(score - base), shrink = expf(high[r] - base);
      s.weights[row][lane] = weight;
      if (lane == 0) s.shrink[row] = shrink;
      high[r] = most;
      sum[r] = sum[r] * shrink + over_warp(weight, Plus());
    }
    __syncthreads();
#pragma unroll
    for (int c = 0; c < SimtHeadRows<d>::kColumns; ++c) {
      out.at[0][c] *= s.shrink[simt_row(0)];
      out.at[1][c] *= s.shrink[simt_row(1)];
    }
    out.add(s.weights, s.v, task.head_dim);
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kHeadRowsAWarp; ++r) {
    const int row = warp * kHeadRowsAWarp + r;
    if (lane != 0) continue;
    s.shrink[row] = 1.0F / sum[r];
    if (first + row < tokens) outputs.lse[at.head * task.tokens + first + row] = high[r] + logf(sum[r]);
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (first + simt_row(r) >= tokens) continue;
#pragma unroll
    for (int c = 0; c < SimtHeadRows<d>::kColumns; ++c) {
      if (simt_column(c) >= task.head_dim) break;
      *outputs.out.row(first + simt_row(r), static_cast<std::int64_t>(at.head) * task.head_dim + simt_column(c)) =
          from_float<T>(out.at[r][c] * s.shrink[simt_row(r)]);
    }
  }
}

template <int d>
struct SimtBackwardShared {
  SimtHead<d> a, b;          // the block's rows
  SimtHead<d> others, more;  // of the other side
  SimtWeights weights, grads;
};

// The weight of a query and key, and the gradient of their score but for the scale, from <q, k> and <dout, v>.
struct SimtPair {
  float weight, grad;
};
template <typename T>
__device__ inline SimtPair simt_pair(const AttentionTask<T>& task, const AttentionGradient<T>& gradient, int head,
                                     int query, int key, float score, float product) {
  if (query >= task.tokens || key > query || key < task.starts[query]) return {0.0F, 0.0F};
  const std::int64_t statistic = head * task.tokens + query;
  const float weight = expf(score * task.scale - gradient.lse[statistic]);
  return {weight, weight * (product - gradient.delta[statistic])};
}

template <typename T, int d>
__global__ void __launch_bounds__(kHeadThreads)
    attention_simt_key_gradient_kernel(AttentionTask<T> task, AttentionGradient<T> gradient) {
  SimtBackwardShared<d>& s = shared_memory<SimtBackwardShared<d>>();
  const TileAt at = tile_at(task.heads, kHeadTile, false);
  const int first = static_cast<int>(at.first), tokens = static_cast<int>(task.tokens);
  const int last = first + kHeadTile <= tokens ? first + kHeadTile - 1 : tokens - 1, end = task.ends[last];
  SimtHeadRows<d> dk, dv;
  load_tile<d>(s.a, task.k, first, tokens, at.head, task.head_dim);
  load_tile<d>(s.b, task.v, first, tokens, at.head, task.head_dim);
  for (int query = first; query < end; query += kHeadTile) {
    __syncthreads();  // nobody reads the tiles before these any more
    load_tile<d>(s.others, task.q, query, tokens, at.head, task.head_dim);
    load_tile<d>(s.more, gradient.dout, query, tokens, at.head, task.head_dim);
    __syncthreads();
    float scores[2][2], products[2][2];
    simt_products<d>(scores, s.a, s.others, task.head_dim);
    simt_products<d>(products, s.b, s.more, task.head_dim);
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int row = simt_row(r), column = simt_column(c);
        const SimtPair pair =
            simt_pair(task, gradient, at.head, query + column, first + row, scores[r][c], products[r][c]);
        s.weights[row][column] = pair.weight;
        s.grads[row][column] = pair.grad;
      }
    __syncthreads();
    dv.add(s.weights, s.more, task.head_dim);
    dk.add(s.grads, s.others, task.head_dim);
  }
  __syncthreads();
  dk.put(s.a, task.head_dim);
  dv.put(s.b, task.head_dim);
  __syncthreads();
  const int rows = last + 1 - first;
  write_rows<1>(gradient.dk, s.a[0], d + 1, at, rows, task.head_dim, task.scale, gradient.turn);
  write_rows<1>(gradient.dv, s.b[0], d + 1, at, rows, task.head_dim, 1.0F, Turn{});
}

template <typename T, int d>
__global__ void __launch_bounds__(kHeadThreads)
    attention_simt_query_gradient_kernel(AttentionTask<T> task, AttentionGradient<T> gradient) {
  SimtBackwardShared<d>& s = shared_memory<SimtBackwardShared<d>>();
  const TileAt at = tile_at(task.heads, kHeadTile, false);
  const int first = static_cast<int>(at.first), tokens = static_cast<int>(task.tokens);
  const int end = first + kHeadTile < tokens ? first + kHeadTile : tokens;
  SimtHeadRows<d> dq;
  load_tile<d>(s.a, task.q, first, tokens, at.head, task.head_dim);
  load_tile<d>(s.b, gradient.dout, first, tokens, at.head, task.head_dim);
  for (int key = task.starts[first] / kHeadTile * kHeadTile; key < end; key += kHeadTile) {
    __syncthreads();  // nobody reads the tiles before these any more
    load_tile<d>(s.others, task.k, key, tokens, at.head, task.head_dim);
    load_tile<d>(s.more, task.v, key, tokens, at.head, task.head_dim);
    __syncthreads();
    float scores[2][2], products[2][2];
    simt_products<d>(scores, s.a, s.others, task.head_dim);
    simt_products<d>(products, s.b, s.more, task.head_dim);
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int c = 0; c < 2; ++c)
        s.grads[simt_row(r)][simt_column(c)] =
            simt_pair(task, gradient, at.head, first + simt_row(r), key + simt_column(c), scores[r][c], products[r][c])
                .grad;
    __syncthreads();
    dq.add(s.grads, s.others, task.head_dim);
  }
  __syncthreads();
  dq.put(s.a, task.head_dim);
  __syncthreads();
  write_rows<1>(gradient.dq, s.a[0], d + 1, at, end - first, task.head_dim, task.scale, gradient.turn);
}

/// Calls f with the number of elements that the tiles hold.
template <typename F>
void by_tile_width(ops::Op op, int head_dim, F&& f) {
  require<ShapeError>(head_dim <= 256, "[{}] heads of {} elements: on a GPU a head has at most 256", ops::name_of(op),
                      head_dim);
  if (head_dim <= 64)
    f(std::integral_constant<int, 64>{});
  else
    f(std::integral_constant<int, 256>{});
}

}  // namespace

template <typename T>
void attention_simt(Queue& q, const AttentionTask<T>& task, const AttentionOutputs<T>& outputs) {
  by_tile_width(ops::Op::attention, task.head_dim, [&](auto d) {
    launch(q, ops::Op::attention, attention_simt_kernel<T, d.value>,
           {attention_blocks(task.tokens, task.heads, kHeadTile), kHeadThreads, sizeof(SimtForwardShared<d.value>)},
           task, outputs);
  });
}

template <typename T>
void attention_simt_backward(Queue& q, const AttentionTask<T>& task, const AttentionGradient<T>& gradient) {
  by_tile_width(ops::Op::attention_backward, task.head_dim, [&](auto d) {
    const Shape3 shape{attention_blocks(task.tokens, task.heads, kHeadTile), kHeadThreads,
                       sizeof(SimtBackwardShared<d.value>)};
    launch(q, ops::Op::attention_backward, attention_simt_key_gradient_kernel<T, d.value>, shape, task, gradient);
    launch(q, ops::Op::attention_backward, attention_simt_query_gradient_kernel<T, d.value>, shape, task, gradient);
  });
}

template void attention_simt(Queue&, const AttentionTask<float>&, const AttentionOutputs<float>&);
template void attention_simt(Queue&, const AttentionTask<Bf16>&, const AttentionOutputs<Bf16>&);
template void attention_simt_backward(Queue&, const AttentionTask<float>&, const AttentionGradient<float>&);
template void attention_simt_backward(Queue&, const AttentionTask<Bf16>&, const AttentionGradient<Bf16>&);

}  // namespace emox::cuda
