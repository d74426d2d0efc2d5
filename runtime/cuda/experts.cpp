// An expert layer's products one after the other, each over all experts: between two of them the rows go through
// memory, which a device with more rows in flight than its cache holds could not avoid.
#include "runtime/ops/experts.h"

#include "runtime/cuda/grouped.h"
#include "runtime/cuda/kernels.h"

namespace emox::cuda {

void experts(Context& ctx, TensorView out, const ops::ExpertRows& rows, const ops::ExpertMatrices& weights) {
  constexpr GroupedCall kCall{ops::Op::experts, 2};
  grouped_product(ctx, kCall, GroupedKind::Nt, rows.hidden, rows.in, weights.up, rows.offsets);
  swiglu(ctx, rows.activation, rows.hidden, rows.gates);
  grouped_product(ctx, kCall, GroupedKind::Nt, out, rows.activation, weights.down, rows.offsets);
}

void experts_backward(Context& ctx, TensorView drows, TensorView dgates, const ops::ExpertMatrices& gradients,
                      const ops::ExpertRows& rows, const ops::ExpertMatrices& weights, float beta) {
  constexpr GroupedCall kCall{ops::Op::experts_backward, 4};
  grouped_product(ctx, kCall, GroupedKind::Nn, rows.activation, drows, weights.down, rows.offsets);
  swiglu_backward(ctx, rows.hidden, rows.activation, dgates, rows.activation, rows.hidden, rows.gates);
  grouped_product(ctx, kCall, GroupedKind::Tn, gradients.down, drows, rows.activation, rows.offsets, beta);
  grouped_product(ctx, kCall, GroupedKind::Tn, gradients.up, rows.hidden, rows.in, rows.offsets, beta);
  grouped_product(ctx, kCall, GroupedKind::Nn, drows, rows.hidden, weights.up, rows.offsets);
}

}  // namespace emox::cuda
