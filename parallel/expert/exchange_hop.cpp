#include "parallel/expert/exchange_hop.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "parallel/expert/exposed.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/ops/basic.h"
#include "runtime/ops/moe.h"

namespace emox {
namespace {

constexpr std::int64_t kMostPicks = std::numeric_limits<std::int32_t>::max();

std::int64_t sum(const std::vector<std::int64_t>& v) { return std::accumulate(v.begin(), v.end(), std::int64_t{0}); }

/// Column `column` of counts [ranks, 2] without this rank's own, which is returned.
std::int64_t split_column(std::vector<std::int64_t>& out, const RankCounts& counts, std::size_t column, int self) {
  out.resize(counts.size() / 2);
  for (std::size_t r = 0; r < out.size(); ++r) out[r] = counts[2 * r + column];
  return std::exchange(out[idx(self)], 0);
}

}  // namespace

HopPlan ExchangeHop::reserve(Arena& arena, std::int64_t rows, std::int64_t picks) const {
  HopPlan p;
  p.row = arena.growing(DType::I32, {std::min(rows * max_destinations_, picks)});
  p.pick = arena.growing(DType::I32, {picks});
  p.slots = arena.growing(DType::I32, {rows, max_destinations_});
  p.counts = arena.allocate(DType::I64, {comm_.size(), 2});
  return p;
}

void ExchangeHop::count_bytes(const std::vector<std::int64_t>& items, std::size_t item_bytes) {
  counters_.count_sent(comm_.nodes(), comm_.rank(), items, item_bytes);
}

void ExchangeHop::set_counts(Context& ctx, HopPlan& p, std::int64_t input_rows, const RankCounts& sends,
                             const RankCounts& receives) const {
  const int self = comm_.rank();
  const std::int64_t own_rows = split_column(p.input_splits, sends, 0, self);
  const std::int64_t own_picks = split_column(p.input_pick_splits, sends, 1, self);
  split_column(p.output_splits, receives, 0, self);
  split_column(p.output_pick_splits, receives, 1, self);
  p.input_rows = input_rows;
  p.sent_away = sum(p.input_splits);
  p.sent = p.sent_away + own_rows;
  p.picks_away = sum(p.input_pick_splits);
  p.picks = p.picks_away + own_picks;
  p.arrived_away = sum(p.output_splits);
  p.arrived = p.arrived_away + own_rows;
  p.arrived_picks_away = sum(p.output_pick_splits);
  p.arrived_picks = p.arrived_picks_away + own_picks;
  require(std::max(p.arrived_picks, p.input_rows * max_destinations_) <= kMostPicks,
          "{} picks of {} tokens come to the experts of rank {}, a plan numbers at most {}: use a smaller "
          "train.micro_batch_sequences, or more ranks in parallel.expert_parallel",
          p.arrived_picks, p.arrived, self, kMostPicks);
  ops::copy_from_host(ctx, p.counts, sends.data());
  p.grown = p.row->ensure(p.sent);
  p.grown += p.pick->ensure(p.picks);
  p.grown += p.slots->ensure(p.input_rows);
  const std::int64_t picks = std::max(p.picks, p.arrived_picks);
  p.grown += staging_.send->ensure(std::max(p.sent_away, p.arrived_away));
  p.grown += staging_.arrive[index_]->ensure(std::max(p.sent, p.arrived));
  p.grown += staging_.pick_send->ensure(picks);
  p.grown += staging_.pick_arrive[index_]->ensure(picks);
  for (GrowingTensor* t : {staging_.packed_send, staging_.packed_arrive, staging_.experts}) p.grown += t->ensure(picks);
  p.grown += staging_.first->ensure(p.arrived + 1);
}

// This rank's own rows: from in[input rows, D] to where arrived rows lie.
void ExchangeHop::gather_own(Context& ctx, const HopPlan& p, TensorView in) const {
  const TensorView arrive = staging_.arrive[index_]->rows(p.arrived);
  ops::gather_rows(ctx, staging_.send->rows(p.sent_away), in, p.row->rows(0, p.sent_away));
  ops::gather_rows(ctx, arrive.rows(p.arrived_away, p.arrived), in, p.row->rows(p.sent_away, p.sent));
}

void ExchangeHop::dispatch_start(Context& ctx, const HopPlan& p, TensorView in, const ops::RowPicks& picks,
                                 TensorView gates, TensorView destination) {
  const TensorView packed = staging_.packed_send->rows(p.picks), sent_gates = staging_.pick_send->rows(p.picks);
  const TensorView packed_in = staging_.packed_arrive->rows(p.arrived_picks),
                   gates_in = staging_.pick_arrive[index_]->rows(p.arrived_picks);
  const ops::SendOrder order{p.row->rows(p.sent), p.pick->rows(p.picks), packed, p.slots->rows(p.input_rows)};
  ops::plan_send(ctx, order, picks, destination, p.counts, comm_.rank());
  ops::gather_elements(ctx, sent_gates, gates, order.pick);
  ops::copy(ctx, packed_in.rows(p.arrived_picks_away, p.arrived_picks), packed.rows(p.picks_away, p.picks));
  ops::copy(ctx, gates_in.rows(p.arrived_picks_away, p.arrived_picks), sent_gates.rows(p.picks_away, p.picks));
  gather_own(ctx, p, in);
  const RowTransfer transfers[] = {{packed_in.rows(0, p.arrived_picks_away), p.output_pick_splits,
                                    packed.rows(0, p.picks_away), p.input_pick_splits},
                                   {gates_in.rows(0, p.arrived_picks_away), p.output_pick_splits,
                                    sent_gates.rows(0, p.picks_away), p.input_pick_splits},
                                   {staging_.arrive[index_]->rows(p.arrived_away), p.output_splits,
                                    staging_.send->rows(p.sent_away), p.input_splits}};
  const Exposed exposed(ctx, counters_);
  comm_.all_to_all_v_start(transfers);
  count_bytes(p.input_pick_splits, sizeof(std::int32_t) + sizeof(float));
  count_bytes(p.input_splits, idx(in.dim(1)) * size_of(in.dtype()));
}

ExchangeHop::Arrived ExchangeHop::dispatch_finish(Context& ctx, const HopPlan& p) {
  Arrived a{send_finish(ctx, p),
            {staging_.experts->rows(p.arrived_picks), staging_.first->rows(p.arrived + 1)},
            staging_.pick_arrive[index_]->rows(p.arrived_picks)};
  ops::unpack_picks(ctx, a.picks, staging_.packed_arrive->rows(p.arrived_picks));
  return a;
}

void ExchangeHop::send_start(Context& ctx, const HopPlan& p, TensorView in) {
  gather_own(ctx, p, in);
  const Exposed exposed(ctx, counters_);
  comm_.all_to_all_v_start(staging_.arrive[index_]->rows(p.arrived_away), p.output_splits,
                           staging_.send->rows(p.sent_away), p.input_splits);
  count_bytes(p.input_splits, idx(in.dim(1)) * size_of(in.dtype()));
}

TensorView ExchangeHop::send_finish(Context& ctx, const HopPlan& p) {
  const Exposed exposed(ctx, counters_);
  comm_.all_to_all_v_finish();
  return staging_.arrive[index_]->rows(p.arrived);
}

void ExchangeHop::return_start(Context& ctx, const HopPlan& p, TensorView rows, TensorView slots, bool pick_values) {
  const TensorView out = staging_.send->rows(p.arrived_away), back = staging_.arrive[index_]->rows(p.sent);
  ops::combine_rows(ctx, out, rows, slots.rows(0, p.arrived_away), 0.0F);
  ops::combine_rows(ctx, back.rows(p.sent_away, p.sent), rows, slots.rows(p.arrived_away, p.arrived), 0.0F);
  const RowTransfer transfer{back.rows(0, p.sent_away), p.input_splits, out, p.output_splits};
  count_bytes(p.output_splits, idx(rows.dim(1)) * size_of(rows.dtype()));
  if (!pick_values) {
    const Exposed exposed(ctx, counters_);
    comm_.all_to_all_v_start({&transfer, 1});
    return;
  }
  const TensorView here = staging_.pick_send->rows(p.arrived_picks),
                   values = staging_.pick_arrive[index_]->rows(p.picks);
  ops::copy(ctx, values.rows(p.picks_away, p.picks), here.rows(p.arrived_picks_away, p.arrived_picks));
  const RowTransfer both[] = {
      transfer,
      {values.rows(0, p.picks_away), p.input_pick_splits, here.rows(0, p.arrived_picks_away), p.output_pick_splits}};
  const Exposed exposed(ctx, counters_);
  comm_.all_to_all_v_start(both);
  count_bytes(p.output_pick_splits, sizeof(float));
}

TensorView ExchangeHop::return_finish(Context& ctx, const HopPlan& p) {
  const Exposed exposed(ctx, counters_);
  comm_.all_to_all_v_finish();
  return staging_.arrive[index_]->rows(p.sent);
}

void ExchangeHop::take_pick_values(Context& ctx, const HopPlan& p, TensorView out) const {
  ops::scatter_elements(ctx, out, staging_.pick_arrive[index_]->rows(p.picks), p.pick->rows(p.picks));
}

}  // namespace emox
