// Products grouped by expert. The experts' rows are known on the device only, so the host launches enough blocks for
// the worst case and each finds its tiles itself: a first kernel checks the offsets and counts the tiles of every
// expert.
#pragma once

#include <cstdint>

#include "runtime/cuda/queue.h"

namespace emox::cuda {

enum class GroupedKind {
  Nt,  ///< C[R,n] = A[R,k] . B[e][n,k]^T
  Nn,  ///< C[R,n] = A[R,k] . B[e][k,n]
  Tn   ///< C[e][k,n] = A[rows of e, k]^T . B[rows of e, n] + beta C[e]
};

struct GroupedProduct {
  void* c;
  const void* a;
  const void* b;
  const std::int64_t* offsets;  ///< [experts + 1]
  std::int64_t experts, rows;   ///< rows: R, of all experts
  std::int64_t n, k;            ///< columns of C and of A
  float beta;                   ///< of Tn; 0 else
};

/// Whose call it is, and the number of its operand that holds the offsets: for messages about wrong ones.
struct GroupedCall {
  ops::Op op;
  int operand;
};

/// Enqueues the product of bf16 or f32 operands, in the terms of GroupedKind; beta is of Tn. Nothing is computed from
/// offsets i64 [E+1] that do not ascend from 0 to R; the first wrong one is reported. Uses the queue's scratch.
void grouped_product(Context& ctx, const GroupedCall& call, GroupedKind kind, const TensorView& c, const TensorView& a,
                     const TensorView& b, const TensorView& offsets, float beta = 0.0F);

// The same in parts.

/// plan[e] = tiles of `tile` rows before expert e, plan[experts] those of all, plan[experts + 1]
/// whether the offsets are right; all 0 where they are wrong.
void plan_groups(Queue& queue, const GroupedCall& call, const GroupedProduct& p, int tile, double* fault,
                 std::int64_t* plan);
/// Chooses its kernel: wgmma where the queue has it and copies of 16 bytes are possible.
void grouped_bf16(Queue& queue, const GroupedCall& call, GroupedKind kind, const GroupedProduct& p,
                  const std::int64_t* plan);
void grouped_f32(Queue& queue, const GroupedCall& call, GroupedKind kind, const GroupedProduct& p,
                 const std::int64_t* plan);
void grouped_wgmma(Queue& queue, const GroupedCall& call, GroupedKind kind, const GroupedProduct& p,
                   const std::int64_t* plan);
/// Rows of a tile of C; its columns are as many, of wgmma more.
inline constexpr int kGroupedBf16Tile = 128, kGroupedF32Tile = 64, kGroupedWgmmaColumns = 256;

/// Tiles of C in the worst case, and blocks for them: as many as run at once, each taking every so manyth tile.
inline std::int64_t grouped_blocks(GroupedKind kind, const GroupedProduct& p, int tile, int columns, int at_once) {
  const std::int64_t across = (p.n + columns - 1) / columns;
  const std::int64_t down = kind == GroupedKind::Tn ? p.experts * ((p.k + tile - 1) / tile)
                                                    : p.rows / tile + (p.experts < p.rows ? p.experts : p.rows);
  const std::int64_t tiles = across * down;
  return tiles < at_once ? tiles : at_once;
}

}  // namespace emox::cuda
