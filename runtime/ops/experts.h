// The products of a layer's experts, one op per direction, so that what an expert's rows become stays in the cache from
// one product to the next. D: model width, F: an expert's, E: experts here, R: rows in expert order.
#pragma once

#include "runtime/core/context.h"
#include "runtime/core/tensor.h"

namespace emox::ops {

/// Rows [offsets[e], offsets[e+1]) belong to expert e; offsets i64 [E+1] ascend from 0 to R. Experts may have no rows.
struct ExpertRows {
  TensorView in;          ///< [R,D]
  TensorView gates;       ///< [R]
  TensorView hidden;      ///< [R,2F], made by forward; backward turns it into its gradient
  TensorView activation;  ///< [R,F] scratch
  TensorView offsets;
};
/// Weights, or their gradients.
struct ExpertMatrices {
  TensorView up;    ///< [E,2F,D]
  TensorView down;  ///< [E,D,F]
};

template <typename F>
void for_each_view(const ExpertRows& r, F&& f) {
  f(r.in), f(r.gates), f(r.hidden), f(r.activation), f(r.offsets);
}
template <typename F>
void for_each_view(const ExpertMatrices& m, F&& f) {
  f(m.up), f(m.down);
}

/// out[R,D] = a down[e]^T, a = swiglu(hidden, gates), hidden = in up[e]^T: grouped_matmul_nt, swiglu,
/// grouped_matmul_nt.
void experts(Context& ctx, TensorView out, const ExpertRows& rows, const ExpertMatrices& weights);
/// drows[R,D]: gradient of out on entry, of `in` on return; dgates[R]. To the weights' gradients beta times what was
/// there is added: 1, or 0 where nothing was.
void experts_backward(Context& ctx, TensorView drows, TensorView dgates, const ExpertMatrices& gradients,
                      const ExpertRows& rows, const ExpertMatrices& weights, float beta = 1.0F);

}  // namespace emox::ops
