// Carries token rows to the experts that they picked and the results back (design section 2, steps 4-8).
//
// A MoE layer talks to this interface only; whether the experts are on this rank or on others is the dispatcher's
// business. dispatch() returns rows in expert order; the handle is the only way to combine them again, and the backward
// pass uses the same handle in reverse. Gates travel with the rows: the experts' rank scales by them and computes their
// gradients (design 4.4).
#pragma once

#include <cstdint>
#include <memory>

#include "runtime/core/arena.h"
#include "runtime/core/context.h"
#include "runtime/core/tensor.h"

namespace emox {

/// Integers that say where every row went. Memory is reserved once for the largest micro-batch; plan() fills it.
struct DispatchHandle {
  std::int64_t tokens = 0;  ///< of the planned micro-batch
  std::int64_t rows = 0;    ///< rows that this rank's experts work on
  TensorView token_of_row;  ///< i32 [rows]
  TensorView slot_of_row;   ///< i32 [rows], token * top_k + place among the token's picks
  TensorView row_of_slot;   ///< i32 [tokens, top_k]
  TensorView offsets;       ///< i64 [local experts + 1], rows of expert e: [offsets[e], offsets[e+1])
};

class TokenDispatcher {
 public:
  virtual ~TokenDispatcher() = default;
  /// Rows that a micro-batch of `tokens` can bring to this rank at most.
  virtual std::int64_t max_rows(std::int64_t tokens) const = 0;
  virtual DispatchHandle reserve(Arena& arena, std::int64_t tokens) const = 0;

  /// Decides where rows go from the picks ids i32 [T,k]. Views inside the handle are cut to this micro-batch.
  virtual void plan(Context& ctx, DispatchHandle& handle, TensorView ids) = 0;
  /// rows[R,D], row_gates[R] in expert order from x[T,D], gates[T,k].
  virtual void dispatch(Context& ctx, TensorView rows, TensorView row_gates, TensorView x, TensorView gates,
                        const DispatchHandle& handle) = 0;
  /// out[T,D] = beta out + sum of the token's (already gated) rows.
  virtual void combine(Context& ctx, TensorView out, TensorView rows, const DispatchHandle& handle, float beta) = 0;
  /// Backward of combine: drows[R,D] from dout[T,D].
  virtual void combine_backward(Context& ctx, TensorView drows, TensorView dout, const DispatchHandle& handle) = 0;
  /// Backward of dispatch: dx[T,D] = beta dx + sum of the token's drows[R,D]; dgates[T,k] from drow_gates[R].
  virtual void dispatch_backward(Context& ctx, TensorView dx, TensorView dgates, TensorView drows,
                                 TensorView drow_gates, const DispatchHandle& handle, float beta) = 0;
};

/// All experts are on this rank.
std::unique_ptr<TokenDispatcher> make_local_dispatcher(std::int64_t routed_experts, std::int64_t routed_top_k);

}  // namespace emox
