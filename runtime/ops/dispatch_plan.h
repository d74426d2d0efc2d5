// The integers of dispatch: which row goes where, made from the picks and the placement (design 4.4).
//
// A hop sends every row once to each destination (a rank, or a node) that holds an expert which the row picked. Plain
// dispatch is one hop (token -> ranks); two-level dispatch is two (token -> nodes, arrived row -> ranks of the node).
// After the last hop the rows are sorted by expert. Rows and picks are counted from 0 on the rank that holds them.
// Contradictions (an expert that is elsewhere, more destinations than there is room for) are a ShapeError.
#pragma once

#include "runtime/core/context.h"
#include "runtime/core/tensor.h"

namespace emox::ops {

/// Rows of one rank, each with the experts that it is for.
struct RowPicks {
  TensorView experts;  ///< i32 [picks] routed experts' global numbers, row after row
  TensorView first;    ///< i32 [rows + 1] row i has picks [first[i], first[i + 1])
  std::int64_t rows() const { return first.dim(0) - 1; }
  std::int64_t picks() const { return experts.dim(0); }
};

// For dispatch.h, which looks at every operand.
template <typename F>
void for_each_view(const RowPicks& x, F&& f) {
  f(x.experts), f(x.first);
}

/// first[i] = i * picks_per_row: rows that have equally many.
void first_picks(Context& ctx, TensorView first, std::int64_t picks_per_row);

/// counts i64 [destinations, 2]: rows with an expert there, and their picks there. destination i32 [experts].
void count_destinations(Context& ctx, TensorView counts, const RowPicks& in, TensorView destination);

/// The sending side of a hop. Send order: destinations rising, but `self` last, so that what leaves the rank and what
/// stays are two contiguous parts; rows of one destination keep their order.
struct SendOrder {
  TensorView row;     ///< i32 [sent rows] input row of each
  TensorView pick;    ///< i32 [picks] input pick of each: a permutation
  TensorView packed;  ///< i32 [picks] what the destination is told: 2 expert + (1 at the first pick of a sent row)
  TensorView slots;   ///< i32 [rows, m] places in send order, by rising destination; -1: none. m: most that a row has
};
template <typename F>
void for_each_view(const SendOrder& x, F&& f) {
  f(x.row), f(x.pick), f(x.packed), f(x.slots);
}

/// `counts`: those of count_destinations for the same rows and destinations.
void plan_send(Context& ctx, const SendOrder& out, const RowPicks& in, TensorView destination, TensorView counts,
               std::int64_t self);

/// The rows that arrived, as out.first has room for: packed lists of the other ranks in rising order, this rank's own
/// last. Lists of another number of rows are a ShapeError.
void unpack_picks(Context& ctx, const RowPicks& out, TensorView packed);

/// The receiving side of the last hop: arrived rows sorted by local expert. Rows of one expert come by rising source
/// rank, then in the order in which the source sent them.
struct ExpertOrder {
  TensorView offsets;  ///< i64 [local experts + 1] rows of local expert e: [offsets[e], offsets[e + 1])
  TensorView row;      ///< i32 [picks] arrived row of each expert row
  TensorView pick;     ///< i32 [picks] arrived pick of each expert row: a permutation
  TensorView slots;    ///< i32 [arrived rows, m] expert rows of an arrived row; -1: none
};
template <typename F>
void for_each_view(const ExpertOrder& x, F&& f) {
  f(x.offsets), f(x.row), f(x.pick), f(x.slots);
}

/// source_rows i64 [ranks]: how many rows came from each; in `in` they lie as unpack_picks says. local_expert i32
/// [experts]: an expert's place on this rank, -1: elsewhere; null: all experts are here.
void plan_experts(Context& ctx, const ExpertOrder& out, const RowPicks& in, TensorView source_rows,
                  TensorView local_expert, std::int64_t self);

/// What the pools alone say before any token picks. limit i64 [destinations]: the most rows that each can be sent, the
/// tokens of the documents whose pool reaches it, and of the others those that are free. reached i64 [1]: destinations
/// that a document's pool reaches, summed over documents.
/// pool u8 [docs, experts] (null: every expert), segments i32 [docs + 1], destination i32 [experts], free_tokens u8
/// [tokens] (null: none): a token with 1 may go to every expert.
void pool_reach(Context& ctx, TensorView limit, TensorView reached, TensorView pool, TensorView segments,
                TensorView destination, TensorView free_tokens);

/// What ranks tell each other about their counts: out[i] = sum of in[index[j]] over j in [first[i], first[i + 1]). out,
/// in i64 [n], [m]; first i32 [n + 1], index i32 [first[n]], both made on the host.
void sum_counts(Context& ctx, TensorView out, TensorView in, TensorView first, TensorView index);

}  // namespace emox::ops
