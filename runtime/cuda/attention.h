// What the kernels of attention share, forward and backward.
//
// A block has a tile of consecutive tokens of one head, whatever documents they belong to: a query sees the keys from
// its document's start to itself, a key the queries from itself to its document's end, and the tiles of the other side
// run from the first to the last of these. So thousands of one-token documents fill tiles as well as one long one, and
// nothing depends on the host knowing the segments: a small kernel looks each token's document up.
//
// Rotated queries and keys are made once a call, in scratch: a tile of keys meets many tiles of queries, and reading
// its angles, f32, each time would take more bytes than the tile itself. Their gradients turn back where they are
// written.
#pragma once

#include <cstdint>

#include "runtime/cuda/device.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/pieces.h"
#include "runtime/ops/layers.h"

namespace emox::cuda {

/// Rows of tokens; a head's elements lie side by side in them, at head * head_dim.
template <typename T>
struct HeadRows {
  T* at;
  std::int64_t stride;
  __host__ __device__ T* row(std::int64_t token, std::int64_t column) const { return at + token * stride + column; }
};

/// Null positions: nothing turns.
struct Turn {
  const std::int32_t* positions = nullptr;
  const float *cos = nullptr, *sin = nullptr;  ///< [positions, half]
};

template <typename T>
struct AttentionTask {
  HeadRows<const T> q, k, v;   ///< queries and keys rotated
  const std::int32_t* starts;  ///< [tokens]: the first token of each token's document
  const std::int32_t* ends;    ///< [tokens]: the token behind its last
  std::int64_t tokens;
  int heads, head_dim;
  float scale;  ///< of scores
};

template <typename T>
struct AttentionOutputs {
  HeadRows<T> out;
  float* lse;  ///< [heads, tokens]
};

template <typename T>
struct AttentionGradient {
  HeadRows<const T> dout;
  const float *lse, *delta;  ///< [heads, tokens]; delta = <dout, out>
  HeadRows<T> dq, dk, dv;
  Turn turn;
};

/// Where a block works: blocks count heads first, so that those that run together read the same rows.
struct TileAt {
  std::int64_t first;  ///< token
  int head;
};
/// `last_first`: where a tile's work grows with its place in the document, the longest begin first.
__device__ inline TileAt tile_at(int heads, int tokens_a_tile, bool last_first) {
  const unsigned tile = blockIdx.x / heads;
  return {static_cast<std::int64_t>(last_first ? gridDim.x / heads - 1 - tile : tile) * tokens_a_tile,
          static_cast<int>(blockIdx.x % heads)};
}
inline dim3 attention_blocks(std::int64_t tokens, int heads, int tokens_a_tile) {
  return blocks_of((tokens + tokens_a_tile - 1) / tokens_a_tile * heads, 1);
}

/// Writes the tile's rows of an output or a gradient from f32 rows in shared memory, times `factor` and turned back.
/// All threads of the block take part; a barrier lies before it. piece: elements written at once, all in one half of a
/// head if it turns.
template <int piece, typename T>
__device__ inline void write_rows(HeadRows<T> to, const float* from, int ld, TileAt at, int rows, int head_dim,
                                  float factor, const Turn& turn) {
  const int half = head_dim / 2, pieces = head_dim / piece;
  for (int i = static_cast<int>(threadIdx.x); i < rows * pieces; i += static_cast<int>(blockDim.x)) {
    const int row = i / pieces, d = i % pieces * piece;
    float x[piece];
    load_floats(x, from + row * ld + d);
    if (turn.positions != nullptr) {
      // (u, v) -> (u cos + v sin, v cos - u sin)
      const bool first = d < half;
      const std::int64_t angles =
          static_cast<std::int64_t>(turn.positions[at.first + row]) * half + (first ? d : d - half);
      float partner[piece], c[piece], s[piece];
      load_floats(partner, from + row * ld + (first ? d + half : d - half));
      load_floats(c, turn.cos + angles);
      load_floats(s, turn.sin + angles);
#pragma unroll
      for (int j = 0; j < piece; ++j) x[j] = x[j] * c[j] + (first ? partner[j] : -partner[j]) * s[j];
    }
#pragma unroll
    for (int j = 0; j < piece; ++j) x[j] *= factor;
    store_piece(to.row(at.first + row, static_cast<std::int64_t>(at.head) * head_dim + d), x);
  }
}

/// Scratch of one call and what the operands become for the kernels. `more`: floats that the caller needs beside.
struct AttentionScratch {
  std::int32_t *starts, *ends;
  void* rotated;  ///< [tokens, 2 width] of queries, then keys; null without a rotation
  float* more;
};
AttentionScratch attention_scratch(Context& ctx, const TensorView& qkv, const ops::Rotation& rotation,
                                   std::int64_t more);

/// Looks the documents up, and rotates queries and keys where there is a rotation.
template <typename T>
AttentionTask<T> attention_task(Context& ctx, ops::Op op, const AttentionScratch& scratch, const TensorView& qkv,
                                const TensorView& segments, int heads, const ops::Rotation& rotation);

Turn turn_of(const ops::Rotation& rotation);

/// Whether the tensor cores' kernels take these heads: bf16, up to kWidestHead elements, in whole pieces of 16 bytes.
/// `rows`: where operands start.
inline constexpr int kWidestHead = 128;
bool for_tensor_cores(const Context& ctx, int head_dim, std::initializer_list<const void*> rows);

// The kernels for f32, and for bf16 heads that tensor cores do not take: attention_simt.cu.
template <typename T>
void attention_simt(Queue& q, const AttentionTask<T>& task, const AttentionOutputs<T>& outputs);
template <typename T>
void attention_simt_backward(Queue& q, const AttentionTask<T>& task, const AttentionGradient<T>& gradient);

}  // namespace emox::cuda
