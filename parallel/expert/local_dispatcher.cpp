#include <algorithm>
#include <cstdint>
#include <utility>

#include "parallel/expert/token_dispatcher.h"
#include "runtime/core/error.h"
#include "runtime/ops/basic.h"
#include "runtime/ops/dispatch_plan.h"
#include "runtime/ops/moe.h"
#include "runtime/telemetry/spans.h"

namespace emox {
namespace {

struct LocalHandle final : DispatchHandle {
  std::int64_t picks = 0;      ///< of a token of the planned micro-batch
  TensorView first;            ///< i32 [tokens + 1] picks of a token
  TensorView all_tokens;       ///< i64 [1]
  std::int64_t uploaded = -1;  ///< what it holds
  TensorView row;              ///< i32 [rows] token of each expert row
  TensorView pick;             ///< i32 [rows] token * picks + place among the token's picks
  TensorView slots;            ///< i32 [tokens * picks] expert rows of a token
  // What an open transfer was given.
  TensorView gates, source;

  TensorView rows_of(TensorView t) const { return t.rows(0, rows); }
  TensorView slots_of_tokens() const { return rows_of(slots).reshape({tokens, picks}); }
};

class LocalDispatcher final : public TokenDispatcher {
 public:
  LocalDispatcher(std::int64_t experts, std::int64_t top_k, DispatchCounters* counters)
      : experts_(experts), top_k_(top_k), counters_(counters) {}

  std::int64_t expected_rows(std::int64_t tokens) const override { return tokens * top_k_; }

  std::unique_ptr<DispatchHandle> reserve(Arena& arena, std::int64_t tokens) const override {
    auto h = std::make_unique<LocalHandle>();
    h->tokens = tokens;
    h->rows = expected_rows(tokens);
    h->first = arena.i32({tokens + 1});
    h->all_tokens = arena.allocate(DType::I64, {1});
    for (TensorView* t : {&h->row, &h->pick, &h->slots}) *t = arena.i32({h->rows});
    h->offsets = arena.allocate(DType::I64, {experts_ + 1});
    return h;
  }

  void plan_finish(Context&, DispatchHandle&) override {}
  void plan_start(Context& ctx, DispatchHandle& base, TensorView ids, TensorView gates,
                  const DocumentPools& pools) override {
    const Span span(ctx, "dispatch.plan");
    LocalHandle& h = of(base);
    h.tokens = ids.dim(0);
    h.rows = ids.numel();
    h.picks = ids.dim(1);
    h.gates = gates;
    require<ShapeError>(h.picks <= top_k_, "{} picks a token, memory was reserved for {}", h.picks, top_k_);
    const ops::RowPicks tokens{ids.reshape({h.rows}), h.first.rows(0, h.tokens + 1)};
    ops::first_picks(ctx, tokens.first, h.picks);
    if (std::exchange(h.uploaded, h.tokens) != h.tokens) ops::copy_from_host(ctx, h.all_tokens, &h.tokens);
    ops::plan_experts(ctx, {h.offsets, h.rows_of(h.row), h.rows_of(h.pick), h.slots_of_tokens()}, tokens, h.all_tokens,
                      {}, 0);
    if (counters_ == nullptr) return;
    DispatchCounters& c = *counters_;
    const auto documents = static_cast<double>(std::max<std::int64_t>(pools.segments.numel() - 1, 0));
    for (const auto name : {DispatchCounters::TokenVisits, DispatchCounters::Ranks, DispatchCounters::Nodes})
      c[name] += static_cast<double>(h.tokens);
    for (const auto name : {DispatchCounters::Documents, DispatchCounters::DocumentRanks}) c[name] += documents;
    c[DispatchCounters::ReceivedRows] += static_cast<double>(h.rows);
  }

  // Nothing travels, so nothing can overlap: start keeps its argument, finish does the work.
  void dispatch_start(Context&, DispatchHandle& base, TensorView x) override { of(base).source = x; }
  void dispatch_finish(Context& ctx, DispatchHandle& base, TensorView rows, TensorView row_gates) override {
    const Span span(ctx, "phase.dispatch");
    const LocalHandle& h = of(base);
    ops::gather_rows(ctx, rows, h.source, h.rows_of(h.row));
    ops::gather_elements(ctx, row_gates, h.gates, h.rows_of(h.pick));
  }
  void combine(Context& ctx, DispatchHandle& base, TensorView out, TensorView rows) override {
    const Span span(ctx, "phase.combine");
    ops::combine_rows(ctx, out, rows, of(base).slots_of_tokens(), 1.0F);
  }
  void combine_backward_start(Context&, DispatchHandle& base, TensorView dout) override { of(base).source = dout; }
  void combine_backward_finish(Context& ctx, DispatchHandle& base, TensorView drows) override {
    const Span span(ctx, "phase.dispatch");
    const LocalHandle& h = of(base);
    ops::gather_rows(ctx, drows, h.source, h.rows_of(h.row));
  }
  void dispatch_backward(Context& ctx, DispatchHandle& base, const DispatchGradients& g) override {
    const Span span(ctx, "phase.combine");
    const LocalHandle& h = of(base);
    ops::combine_rows(ctx, g.dx, g.drows, h.slots_of_tokens(), g.beta);
    ops::scatter_elements(ctx, g.dgates, g.drow_gates, h.rows_of(h.pick));
  }

 private:
  static LocalHandle& of(DispatchHandle& base) { return static_cast<LocalHandle&>(base); }
  std::int64_t experts_, top_k_;
  DispatchCounters* counters_;
};

}  // namespace

std::unique_ptr<TokenDispatcher> make_local_dispatcher(std::int64_t routed_experts, std::int64_t routed_top_k,
                                                       DispatchCounters* counters) {
  return std::make_unique<LocalDispatcher>(routed_experts, routed_top_k, counters);
}

}  // namespace emox
