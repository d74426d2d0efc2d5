#include "parallel/expert/planned_exchange.h"

#include "runtime/core/context.h"
#include "runtime/core/idx.h"
#include "runtime/ops/dispatch_plan.h"

namespace emox {
namespace {

template <typename T>
TensorView view(std::vector<T>& v) {
  return {v.data(), dtype_of<T>(), {static_cast<std::int64_t>(v.size())}};
}
/// What is only read.
template <typename T>
TensorView view(std::span<const T> v) {
  return {const_cast<T*>(v.data()), dtype_of<T>(), {static_cast<std::int64_t>(v.size())}};
}
ops::RowPicks view(const RowPicks& p) { return {view(std::span(p.experts)), view(std::span(p.first))}; }

}  // namespace

void picks_of_tokens(RowPicks& out, std::span<const std::int32_t> ids, std::int64_t top_k) {
  Context ctx;
  out.experts.assign(ids.begin(), ids.end());
  out.first.resize(ids.size() / idx(top_k) + 1);
  ops::first_picks(ctx, view(out.first), top_k);
}

void plan_send(SendPlan& out, const RowPicks& in, std::span<const std::int32_t> destination, int self, int ranks,
               std::int64_t max_destinations) {
  Context ctx;
  out.max_destinations = max_destinations;
  out.counts.resize(idx(2 * ranks));
  const TensorView counts = view(out.counts).reshape({ranks, 2});
  ops::count_destinations(ctx, counts, view(in), view(destination));
  out.rows.clear(), out.picks.clear();
  std::int64_t rows_sent = 0;
  for (std::size_t r = 0; r < out.counts.size(); r += 2) {
    out.rows.push_back(out.counts[r]);
    out.picks.push_back(out.counts[r + 1]);
    rows_sent += out.counts[r];
  }
  out.row.resize(idx(rows_sent));
  out.pick.resize(idx(in.picks()));
  out.packed.resize(idx(in.picks()));
  out.slots.resize(idx(in.rows() * max_destinations));
  ops::plan_send(
      ctx, {view(out.row), view(out.pick), view(out.packed), view(out.slots).reshape({in.rows(), max_destinations})},
      view(in), view(destination), counts, self);
}

void unpack_picks(RowPicks& out, std::span<const std::int32_t> packed, std::int64_t expected_rows) {
  Context ctx;
  out.experts.resize(packed.size());
  out.first.resize(idx(expected_rows + 1));
  ops::unpack_picks(ctx, {view(out.experts), view(out.first)}, view(packed));
}

void plan_experts(ExpertOrder& out, const RowPicks& in, std::span<const std::int64_t> source_rows,
                  const RankExperts& here) {
  Context ctx;
  out.max_experts = here.max_picked;
  out.offsets.resize(idx(here.count + 1));
  out.row.resize(idx(in.picks()));
  out.pick.resize(idx(in.picks()));
  out.slots.resize(idx(in.rows() * here.max_picked));
  ops::plan_experts(
      ctx, {view(out.offsets), view(out.row), view(out.pick), view(out.slots).reshape({in.rows(), here.max_picked})},
      view(in), view(source_rows), view(here.local_expert), here.rank);
}

void pool_reach(PoolReach& out, std::span<const std::uint8_t> pool, std::span<const std::int32_t> segments,
                std::span<const std::int32_t> destination, std::int64_t destinations,
                std::span<const std::uint8_t> free_tokens) {
  Context ctx;
  out.limit.resize(idx(destinations));
  const auto documents = static_cast<std::int64_t>(segments.size()) - 1;
  const TensorView mask =
      pool.empty() ? TensorView{} : view(pool).reshape({documents, static_cast<std::int64_t>(destination.size())});
  ops::pool_reach(ctx, view(out.limit), TensorView(&out.reached, DType::I64, {1}), mask, view(segments),
                  view(destination), free_tokens.empty() ? TensorView{} : view(free_tokens));
}

}  // namespace emox
