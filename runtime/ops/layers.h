// Ops of the dense part of a transformer: embedding, RMSNorm, RoPE, attention, SwiGLU.
#pragma once

#include "runtime/core/context.h"
#include "runtime/core/tensor.h"

namespace emox::ops {

/// y[T,D] = table[ids[t]]; ids i32 [T] in [0, V), table [V,D]
void embedding(Context& ctx, TensorView y, TensorView ids, TensorView table);
/// dtable[V,D] += sum over t with ids[t] = v of dy[t]
void embedding_backward(Context& ctx, TensorView dtable, TensorView ids, TensorView dy);

/// y[T,D] = x * rstd * scale, rstd[T] = 1/sqrt(mean(x^2) + eps)     (spec 1.1)
void rms_norm(Context& ctx, TensorView y, TensorView rstd, TensorView x, TensorView scale, float eps);
/// dx[T,D] += rstd (g - x rstd^2 mean(g x)), g = dy scale;  dscale[D] += sum_t dy x rstd.
/// dx accumulates because it is the gradient of the residual stream, which the norm branches off.
void rms_norm_backward_add(Context& ctx, TensorView dx, TensorView dscale, TensorView dy, TensorView x, TensorView rstd,
                           TensorView scale);

/// Rotary angles: cos, sin [S, head_dim/2] of position * theta^(-2i/head_dim), computed in double (spec 1.1).
void rope_tables(Context& ctx, TensorView cos, TensorView sin, double theta);
/// Rotary position of attention's queries and keys, halves of each head paired ("rotate-half"): positions i32 [T] < S,
/// cos, sin [S, head_dim/2]. All null: no rotation.
struct Rotation {
  TensorView positions, cos, sin;
};
/// For dispatch.h, which looks at every operand.
template <typename F>
void for_each_view(const Rotation& r, F&& f) {
  f(r.positions), f(r.cos), f(r.sin);
}

/// Causal softmax attention inside segments, scale head_dim^-1/2 (spec 1.1, 3.6). Queries and keys lie in qkv as the
/// projection made them; the rotation is applied where they are read, and turned back in their gradients.
/// out[T,D], lse[heads,T] (log-sum-exp of the scaled scores), qkv[T,3D];
/// segments i32 [n+1]: tokens [segments[i], segments[i+1]) attend to each other and to nothing else.
/// Scores exist block by block; the work is proportional to the sum of squared segment lengths.
void attention(Context& ctx, TensorView out, TensorView lse, TensorView qkv, TensorView segments, int heads,
               const Rotation& rotation = {});
/// dqkv[T,3D] from dout[T,D]; scores are computed again from qkv and lse.
void attention_backward(Context& ctx, TensorView dqkv, TensorView dout, TensorView out, TensorView lse, TensorView qkv,
                        TensorView segments, int heads, const Rotation& rotation = {});

/// a[R,F] = g[r] silu(h[r,:F]) h[r,F:];  h[R,2F]; gates g[R], null: 1.
/// Folding the gate in here makes combine a plain sum, and its gradient a dot product of F instead of D elements.
void swiglu(Context& ctx, TensorView a, TensorView h, TensorView gates);
/// From da[R,F]: dh[R,2F] (may be h itself), dgates[R] = <da, silu(h1) h3> (null: not wanted), and once more
/// a[R,F], the gated activation that the weight gradient of the down projection needs (may be da itself).
void swiglu_backward(Context& ctx, TensorView dh, TensorView a, TensorView dgates, TensorView da, TensorView h,
                     TensorView gates);

}  // namespace emox::ops
