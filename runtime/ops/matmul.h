// Matrix products, plain and grouped by expert. All f32, row-major, contiguous.
#pragma once

#include "runtime/core/context.h"
#include "runtime/core/tensor.h"

namespace emox::ops {

/// C[M,N] = A[M,K] . B[N,K]^T + beta C     (activations times an (out, in) weight)
void matmul_nt(Context& ctx, TensorView c, TensorView a, TensorView b, float beta = 0.0F);
/// C[M,N] = A[M,K] . B[K,N] + beta C       (gradient with respect to the activations)
void matmul_nn(Context& ctx, TensorView c, TensorView a, TensorView b, float beta = 0.0F);
/// C[M,N] = A[K,M]^T . B[K,N] + beta C     (gradient with respect to the weight: beta = 1)
void matmul_tn(Context& ctx, TensorView c, TensorView a, TensorView b, float beta = 0.0F);

// Logits stay f32 whatever type activations have. Their rows may be wider than the weight has rows, so that each begins
// aligned: N >= V, and the last N - V columns are neither read nor written.

/// logits[T,N], the first V columns = x[T,D] . weight[V,D]^T
void logits(Context& ctx, TensorView logits, TensorView x, TensorView weight);
/// dweight[V,D] += dlogits^T . x;  dx[T,D] += dlogits . weight;  of dlogits[T,N] the first V columns
void logits_backward(Context& ctx, TensorView dx, TensorView dweight, TensorView dlogits, TensorView x,
                     TensorView weight);

// Grouped: rows [offsets[e], offsets[e+1]) of the activations belong to expert e; offsets i64 [E+1] ascend from 0 to R.
// Groups may be empty.

/// C[R,N] = A[R,K] . B[e][N,K]^T for the rows of each expert e
void grouped_matmul_nt(Context& ctx, TensorView c, TensorView a, TensorView b, TensorView offsets);
/// C[R,N] = A[R,K] . B[e][K,N]
void grouped_matmul_nn(Context& ctx, TensorView c, TensorView a, TensorView b, TensorView offsets);
/// C[e][M,N] = A[rows of e, M]^T . B[rows of e, N] + beta C[e]   (weight gradients of all experts)
void grouped_matmul_tn(Context& ctx, TensorView c, TensorView a, TensorView b, TensorView offsets, float beta = 1.0F);

}  // namespace emox::ops
