// Carries token rows to the experts that they picked and the results back (design section 2, steps 4-8).
//
// A MoE layer talks to this interface only; whether the experts are on this rank or on others is the dispatcher's
// business. Rows arrive in expert order; the handle is the only way to combine them again, and the backward pass uses
// the same handle in reverse. Gates travel with the rows: the experts' rank scales by them and computes their gradients
// (design 4.4).
//
// Where work is done between, a transfer is a start and a finish. One transfer is open at a time; what was given to
// start must stay as it is until finish. All ranks of the expert group make the same calls. Plans are made by ops
// (runtime/ops/dispatch_plan.h): with experts on this rank alone the host never looks at a token, with experts on
// others it reads one list of counts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "parallel/expert/dispatch_counters.h"
#include "runtime/core/arena.h"
#include "runtime/core/context.h"
#include "runtime/core/tensor.h"

namespace emox {

/// Auto: worked out by whoever knows the nodes (launch/run/sharding.h), before anything is made.
enum class DispatchKind : std::uint8_t { Local, Flat, TwoLevel, Auto };

/// Where every row of one micro-batch went, as integers. Memory is reserved once; plan() fills it.
struct DispatchHandle {
  virtual ~DispatchHandle() = default;
  std::int64_t tokens = 0;  ///< of the planned micro-batch
  std::int64_t rows = 0;    ///< rows that this rank's experts work on
  std::size_t grown = 0;    ///< bytes by which memory had to grow for the last plan
  TensorView offsets;       ///< i64 [local experts + 1], rows of local expert e: [offsets[e], offsets[e + 1])
};

/// The documents of a micro-batch and the experts that each may use.
struct DocumentPools {
  TensorView pool;              ///< u8 [docs, experts]; null: every expert
  TensorView segments;          ///< i32 [docs + 1] tokens of each document
  TensorView free_tokens = {};  ///< u8 [T], 1: picks outside of its document's pool, too; null: none
};

/// What the backward pass of dispatch takes and leaves.
struct DispatchGradients {
  TensorView dx;  ///< [T,D] = beta dx + sum of the token's drows
  float beta;
  TensorView dgates;      ///< [T,k] from drow_gates
  TensorView drows;       ///< [R,D]
  TensorView drow_gates;  ///< [R]
};

class TokenDispatcher {
 public:
  virtual ~TokenDispatcher() = default;
  /// Rows to reserve memory for when a micro-batch has `tokens` tokens. More can arrive unless the experts are local.
  virtual std::int64_t expected_rows(std::int64_t tokens) const = 0;
  /// Whether a device may be given other work while rows travel.
  virtual bool overlaps() const { return true; }
  virtual std::unique_ptr<DispatchHandle> reserve(Arena& arena, std::int64_t tokens) const = 0;

  /// Decides where rows go from the picks ids i32 [T,k], k at most what the dispatcher was made for. The picks and
  /// their gates [T,k] travel with the rows, and stay as they are until dispatch_finish.
  virtual void plan_start(Context& ctx, DispatchHandle& handle, TensorView ids, TensorView gates,
                          const DocumentPools& pools) = 0;
  /// Afterwards handle.rows is known and memory for the rows must be made before dispatch_finish. With experts on other
  /// ranks the host waits here for their counts: what a device can do meanwhile is given to it before.
  virtual void plan_finish(Context& ctx, DispatchHandle& handle) = 0;
  void plan(Context& ctx, DispatchHandle& handle, TensorView ids, TensorView gates, const DocumentPools& pools) {
    plan_start(ctx, handle, ids, gates, pools);
    plan_finish(ctx, handle);
  }

  /// rows[R,D], row_gates[R] in expert order from x[T,D] and the planned gates. After finish, handle.offsets hold.
  virtual void dispatch_start(Context& ctx, DispatchHandle& handle, TensorView x) = 0;
  virtual void dispatch_finish(Context& ctx, DispatchHandle& handle, TensorView rows, TensorView row_gates) = 0;
  /// out[T,D] += sum of the token's (already gated) rows[R,D].
  virtual void combine(Context& ctx, DispatchHandle& handle, TensorView out, TensorView rows) = 0;
  /// Backward of combine: drows[R,D] from dout[T,D].
  virtual void combine_backward_start(Context& ctx, DispatchHandle& handle, TensorView dout) = 0;
  virtual void combine_backward_finish(Context& ctx, DispatchHandle& handle, TensorView drows) = 0;
  virtual void dispatch_backward(Context& ctx, DispatchHandle& handle, const DispatchGradients& gradients) = 0;
};

/// All experts are on this rank.
std::unique_ptr<TokenDispatcher> make_local_dispatcher(std::int64_t routed_experts, std::int64_t routed_top_k,
                                                       DispatchCounters* counters = nullptr);

}  // namespace emox
