#include <cstdint>
#include <vector>

#include "parallel/expert/token_dispatcher.h"
#include "runtime/ops/basic.h"
#include "runtime/ops/moe.h"
#include "runtime/telemetry/spans.h"

namespace emox {
namespace {

class LocalDispatcher final : public TokenDispatcher {
 public:
  LocalDispatcher(std::int64_t experts, std::int64_t top_k) : experts_(experts), top_k_(top_k) {}

  std::int64_t max_rows(std::int64_t tokens) const override { return tokens * top_k_; }

  DispatchHandle reserve(Arena& arena, std::int64_t tokens) const override {
    DispatchHandle h;
    h.tokens = tokens;
    h.rows = max_rows(tokens);
    h.token_of_row = arena.i32({h.rows});
    h.slot_of_row = arena.i32({h.rows});
    h.row_of_slot = arena.i32({tokens, top_k_});
    h.offsets = arena.allocate(DType::I64, {experts_ + 1});
    return h;
  }

  // Counting sort by expert; rows of one expert keep the order of their tokens.
  void plan(Context& ctx, DispatchHandle& handle, TensorView ids) override {
    const Span span(ctx, "dispatch.plan");
    const std::int64_t tokens = ids.dim(0), rows = ids.numel();
    ids_.resize(static_cast<std::size_t>(rows));
    token_of_row_.resize(static_cast<std::size_t>(rows));
    slot_of_row_.resize(static_cast<std::size_t>(rows));
    row_of_slot_.resize(static_cast<std::size_t>(rows));
    ops::copy_to_host(ctx, ids_.data(), ids);
    offsets_.assign(static_cast<std::size_t>(experts_ + 1), 0);
    for (const std::int32_t id : ids_) ++offsets_[static_cast<std::size_t>(id) + 1];
    for (std::size_t e = 1; e < offsets_.size(); ++e) offsets_[e] += offsets_[e - 1];
    next_.assign(offsets_.begin(), offsets_.end());
    for (std::int64_t slot = 0; slot < rows; ++slot) {
      const auto s = static_cast<std::size_t>(slot);
      const auto row = static_cast<std::size_t>(next_[static_cast<std::size_t>(ids_[s])]++);
      token_of_row_[row] = static_cast<std::int32_t>(slot / top_k_);
      slot_of_row_[row] = static_cast<std::int32_t>(slot);
      row_of_slot_[s] = static_cast<std::int32_t>(row);
    }
    handle.tokens = tokens;
    handle.rows = rows;
    ops::copy_from_host(ctx, handle.token_of_row.rows(0, rows), token_of_row_.data());
    ops::copy_from_host(ctx, handle.slot_of_row.rows(0, rows), slot_of_row_.data());
    ops::copy_from_host(ctx, handle.row_of_slot.rows(0, tokens), row_of_slot_.data());
    ops::copy_from_host(ctx, handle.offsets, offsets_.data());
  }

  void dispatch(Context& ctx, TensorView rows, TensorView row_gates, TensorView x, TensorView gates,
                const DispatchHandle& h) override {
    const Span span(ctx, "phase.dispatch");
    ops::gather_rows(ctx, rows, x, h.token_of_row.rows(0, h.rows));
    ops::gather_elements(ctx, row_gates, gates, h.slot_of_row.rows(0, h.rows));
  }

  void combine(Context& ctx, TensorView out, TensorView rows, const DispatchHandle& h, float beta) override {
    const Span span(ctx, "phase.combine");
    ops::combine_rows(ctx, out, rows, h.row_of_slot.rows(0, h.tokens), beta);
  }

  void combine_backward(Context& ctx, TensorView drows, TensorView dout, const DispatchHandle& h) override {
    const Span span(ctx, "phase.dispatch");
    ops::gather_rows(ctx, drows, dout, h.token_of_row.rows(0, h.rows));
  }

  void dispatch_backward(Context& ctx, TensorView dx, TensorView dgates, TensorView drows, TensorView drow_gates,
                         const DispatchHandle& h, float beta) override {
    const Span span(ctx, "phase.combine");
    ops::combine_rows(ctx, dx, drows, h.row_of_slot.rows(0, h.tokens), beta);
    ops::scatter_elements(ctx, dgates, drow_gates, h.slot_of_row.rows(0, h.rows));
  }

 private:
  std::int64_t experts_, top_k_;
  // Host side of the plan, kept so that a step allocates nothing.
  std::vector<std::int32_t> ids_, token_of_row_, slot_of_row_, row_of_slot_;
  std::vector<std::int64_t> offsets_, next_;
};

}  // namespace

std::unique_ptr<TokenDispatcher> make_local_dispatcher(std::int64_t routed_experts, std::int64_t routed_top_k) {
  return std::make_unique<LocalDispatcher>(routed_experts, routed_top_k);
}

}  // namespace emox
