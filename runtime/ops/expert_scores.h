// Ops for choosing experts: what experts put out, what the layer's output changes, and a router that sees some experts
// only (spec 6). n: routed experts; n_s: shared ones; k: routed picks a token.
#pragma once

#include "runtime/core/context.h"
#include "runtime/core/tensor.h"

namespace emox::ops {

/// ids[...] = table[ids[...]], i32; table i32 [m], ids in [0, m)
void translate_ids(Context& ctx, TensorView ids, TensorView table);

/// norms[R] = |x[r]|_2 of x[R,D], summed in double
void row_norms(Context& ctx, TensorView norms, TensorView x);

/// change f64 [T] = max(0, 1 - cos(h, h + y)) of h, y [T,D], in double; 1 where h or h + y is zero    (spec 6.2)
void output_change(Context& ctx, TensorView change, TensorView h, TensorView y);

/// scores f64 [n + n_s]: adds routed[t,j] change[t] to the expert ids[t,j], and shared[s,t] change[t] to n + s, token
/// by token. ids i32 [T,k]; routed[T,k] and shared[n_s,T]: norms of gated outputs; change f64 [T]    (easy_ep,
/// spec 6.2)
void add_expert_scores(Context& ctx, TensorView scores, TensorView ids, TensorView routed, TensorView shared,
                       TensorView change);

}  // namespace emox::ops
