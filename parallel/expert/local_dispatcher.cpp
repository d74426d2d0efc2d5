#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel/expert/token_dispatcher.h"
#include "runtime/core/error.h"
#include "runtime/ops/basic.h"
#include "runtime/ops/moe.h"
#include "runtime/telemetry/spans.h"

namespace emox {
namespace {

struct LocalHandle final : DispatchHandle {
  std::int64_t picks = 0;   ///< of a token of the planned micro-batch
  TensorView token_of_row;  ///< i32 [rows]
  TensorView slot_of_row;   ///< i32 [rows], token * top_k + place among the token's picks
  TensorView row_of_slot;   ///< i32 [tokens * top_k]
};

class LocalDispatcher final : public TokenDispatcher {
 public:
  LocalDispatcher(std::int64_t experts, std::int64_t top_k, DispatchCounters* counters)
      : experts_(experts), top_k_(top_k), counters_(counters) {}

  std::int64_t expected_rows(std::int64_t tokens) const override { return tokens * top_k_; }

  std::shared_ptr<DispatchHandle> reserve(Arena& arena, std::int64_t tokens) const override {
    auto h = std::make_shared<LocalHandle>();
    h->tokens = tokens;
    h->rows = expected_rows(tokens);
    h->token_of_row = arena.i32({h->rows});
    h->slot_of_row = arena.i32({h->rows});
    h->row_of_slot = arena.i32({h->rows});
    h->offsets = arena.allocate(DType::I64, {experts_ + 1});
    return h;
  }

  // Counting sort by expert; rows of one expert keep the order of their tokens.
  void plan(Context& ctx, DispatchHandle& base, TensorView ids, TensorView gates, const DocumentPools& pools) override {
    const Span span(ctx, "dispatch.plan");
    auto& handle = static_cast<LocalHandle&>(base);
    const std::int64_t tokens = ids.dim(0), rows = ids.numel(), top_k = ids.dim(1);
    require<ShapeError>(top_k <= top_k_, "{} picks a token, memory was reserved for {}", top_k, top_k_);
    ids_.resize(static_cast<std::size_t>(rows));
    token_of_row_.resize(static_cast<std::size_t>(rows));
    slot_of_row_.resize(static_cast<std::size_t>(rows));
    row_of_slot_.resize(static_cast<std::size_t>(rows));
    ops::copy_to_host(ctx, ids_.data(), ids);
    gates_ = gates;
    offsets_.assign(static_cast<std::size_t>(experts_ + 1), 0);
    for (const std::int32_t id : ids_) ++offsets_[static_cast<std::size_t>(id) + 1];
    for (std::size_t e = 1; e < offsets_.size(); ++e) offsets_[e] += offsets_[e - 1];
    next_.assign(offsets_.begin(), offsets_.end());
    for (std::int64_t slot = 0; slot < rows; ++slot) {
      const auto s = static_cast<std::size_t>(slot);
      const auto row = static_cast<std::size_t>(next_[static_cast<std::size_t>(ids_[s])]++);
      token_of_row_[row] = static_cast<std::int32_t>(slot / top_k);
      slot_of_row_[row] = static_cast<std::int32_t>(slot);
      row_of_slot_[s] = static_cast<std::int32_t>(row);
    }
    handle.tokens = tokens;
    handle.rows = rows;
    handle.picks = top_k;
    if (counters_ != nullptr) {
      DispatchCounters& c = *counters_;
      const auto documents = static_cast<double>(std::max<std::int64_t>(pools.segments.numel() - 1, 0));
      for (const auto name : {DispatchCounters::TokenVisits, DispatchCounters::Ranks, DispatchCounters::Nodes})
        c[name] += static_cast<double>(tokens);
      for (const auto name : {DispatchCounters::Documents, DispatchCounters::DocumentRanks}) c[name] += documents;
      c[DispatchCounters::ReceivedRows] += static_cast<double>(rows);
    }
    ops::copy_from_host(ctx, handle.token_of_row.rows(0, rows), token_of_row_.data());
    ops::copy_from_host(ctx, handle.slot_of_row.rows(0, rows), slot_of_row_.data());
    ops::copy_from_host(ctx, handle.row_of_slot.rows(0, rows), row_of_slot_.data());
    ops::copy_from_host(ctx, handle.offsets, offsets_.data());
  }

  // Nothing travels, so nothing can overlap: start keeps its arguments, finish does the work.
  void dispatch_start(Context&, TensorView x, DispatchHandle&) override { open_ = {x, gates_}; }
  void dispatch_finish(Context& ctx, TensorView rows, TensorView row_gates, DispatchHandle& base) override {
    const Span span(ctx, "phase.dispatch");
    const auto& h = static_cast<LocalHandle&>(base);
    ops::gather_rows(ctx, rows, open_.rows, h.token_of_row.rows(0, h.rows));
    ops::gather_elements(ctx, row_gates, open_.gates, h.slot_of_row.rows(0, h.rows));
  }
  void combine_start(Context&, TensorView rows, DispatchHandle&) override { open_ = {rows, {}}; }
  void combine_finish(Context& ctx, TensorView out, DispatchHandle& base) override {
    const Span span(ctx, "phase.combine");
    const auto& h = static_cast<LocalHandle&>(base);
    ops::combine_rows(ctx, out, open_.rows, slots(h), 1.0F);
  }
  void combine_backward_start(Context&, TensorView dout, DispatchHandle&) override { open_ = {dout, {}}; }
  void combine_backward_finish(Context& ctx, TensorView drows, DispatchHandle& base) override {
    const Span span(ctx, "phase.dispatch");
    const auto& h = static_cast<LocalHandle&>(base);
    ops::gather_rows(ctx, drows, open_.rows, h.token_of_row.rows(0, h.rows));
  }
  void dispatch_backward_start(Context&, TensorView drows, TensorView drow_gates, DispatchHandle&) override {
    open_ = {drows, drow_gates};
  }
  void dispatch_backward_finish(Context& ctx, TensorView dx, TensorView dgates, DispatchHandle& base,
                                float beta) override {
    const Span span(ctx, "phase.combine");
    const auto& h = static_cast<LocalHandle&>(base);
    ops::combine_rows(ctx, dx, open_.rows, slots(h), beta);
    ops::scatter_elements(ctx, dgates, open_.gates, h.slot_of_row.rows(0, h.rows));
  }

 private:
  /// i32 [tokens, k]
  TensorView slots(const LocalHandle& h) const { return h.row_of_slot.rows(0, h.rows).reshape({h.tokens, h.picks}); }
  struct Open {
    TensorView rows, gates;
  };
  std::int64_t experts_, top_k_;
  DispatchCounters* counters_;
  Open open_;
  TensorView gates_;  ///< of the planned picks
  // Host side of the plan, kept so that a step allocates nothing.
  std::vector<std::int32_t> ids_, token_of_row_, slot_of_row_, row_of_slot_;
  std::vector<std::int64_t> offsets_, next_;
};

}  // namespace

std::unique_ptr<TokenDispatcher> make_local_dispatcher(std::int64_t routed_experts, std::int64_t routed_top_k,
                                                       DispatchCounters* counters) {
  return std::make_unique<LocalDispatcher>(routed_experts, routed_top_k, counters);
}

}  // namespace emox
