// Ops of the mixture-of-experts layer: router, document pools, row movement, balance statistics (spec 2 and 3).
// n: routed experts; k: routed picks a token; docs: pool segments of the micro-batch. Rows of logits and of p may be
// wider than n, so that each begins aligned: N >= n, and the last N - n columns are neither read nor written unless it
// is said.
#pragma once

#include "runtime/core/context.h"
#include "runtime/core/tensor.h"

namespace emox::ops {

/// p[T,N] = softmax of logits[T,N] over the first n columns, no pool (spec 0 step 2); n 0: all
void router_softmax(Context& ctx, TensorView p, TensorView logits, std::int64_t n = 0);
/// scores[docs,n] = sum of p[T,N] over the document's tokens; segments i32 [docs+1] (spec 3.2)
void document_scores(Context& ctx, TensorView scores, TensorView p, TensorView segments);
/// pool u8 [docs,n]: 1 for the sizes[doc] experts of highest score (ties: lowest index), all if sizes[doc] >= n
/// (spec 3.4). NaN is the lowest score: a pool has its size whatever the numbers are.
void document_pools(Context& ctx, TensorView pool, TensorView scores, TensorView sizes);

struct TopkResult {
  TensorView p;      ///< [T,N] softmax inside the pool, 0 outside
  TensorView lse;    ///< [T] log-sum-exp of the logits inside the pool
  TensorView ids;    ///< i32 [T,k] picks by falling logit (+ bias), ties: lowest index; NaN last, all in the pool
  TensorView gates;  ///< [T,k] p at the picks, divided by their sum if `normalize`
  std::int64_t columns = 0;  ///< n; 0: N
  std::int64_t experts() const { return columns == 0 ? p.dim(1) : columns; }
};
/// For dispatch.h, which looks at every operand.
template <typename F>
void for_each_view(const TopkResult& r, F&& f) {
  f(r.p), f(r.lse), f(r.ids), f(r.gates);
}

/// Softmax and top-k inside the pool. pool u8 [docs,n] with segments i32 [docs+1], or both null: no restriction.
/// logits[T,N]. free_tokens u8 [T] (null: none): a token with 1 sees all experts, as if its document had no pool.
/// bias[n] (null: none) is added to p for choosing only, never to the gates (DeepSeek's auxiliary-loss-free balancing).
void masked_topk(Context& ctx, TopkResult out, TensorView logits, TensorView pool, TensorView segments, TensorView bias,
                 bool normalize, TensorView free_tokens = {});
/// dlogits[T,N], 0 in the last N - n columns, from the gates' gradients dgates[T,k] and the auxiliary losses:
/// dp_i = dgates at the picks + balance_grad[i] (null: none); dlogits = p (dp - <p,dp>) + 2 z_grad lse p.
/// balance_grad[n]: d loss / d p_i, the same for every token; z_grad: weight / divisor of the router z-loss.
void masked_topk_backward(Context& ctx, TensorView dlogits, TensorView dgates, const TopkResult& fwd,
                          TensorView balance_grad, float z_grad, bool normalize);
/// Adds this micro-batch: counts i64 [n] picks, p_sum f64 [n] sum of p, z_sum f64 [1] sum of lse^2 (spec 2.2, 2.3)
void router_statistics(Context& ctx, TensorView counts, TensorView p_sum, TensorView z_sum, const TopkResult& fwd);

/// sum i64 [1] += over all documents the number of different experts that its tokens picked; ids i32 [T,k] in [0,
/// experts)
void document_experts(Context& ctx, TensorView sum, TensorView ids, TensorView segments, std::int64_t experts);

/// out[R,D] = x[index[r]]; index i32 [R]      (permute: token rows into expert order, and dispatch)
void gather_rows(Context& ctx, TensorView out, TensorView x, TensorView index);
/// y[T,D] = beta y + sum over j of rows[slots[t,j]]; slots i32 [T,m], -1: no row     (unpermute / combine, fixed order)
void combine_rows(Context& ctx, TensorView y, TensorView rows, TensorView slots, float beta);
/// dst[i] = src[index[i]]; dst f32 [R], src f32 any shape, index i32 [R]      (gates into expert order)
void gather_elements(Context& ctx, TensorView dst, TensorView src, TensorView index);
/// dst[index[i]] = src[i]: the inverse of gather_elements for distinct indices  (gate gradients back to token order)
void scatter_elements(Context& ctx, TensorView dst, TensorView src, TensorView index);

}  // namespace emox::ops
