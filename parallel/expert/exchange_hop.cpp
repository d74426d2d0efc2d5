#include "parallel/expert/exchange_hop.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <numeric>
#include <utility>

#include "runtime/core/error.h"
#include "runtime/ops/basic.h"
#include "runtime/ops/moe.h"
#include "runtime/telemetry/spans.h"

namespace emox {
namespace {

template <typename T>
TensorView host_view(std::vector<T>& v, std::size_t begin, std::size_t count, Shape shape) {
  return {count == 0 ? nullptr : v.data() + begin, dtype_of<T>(), shape};
}

constexpr std::int64_t kMostPicks = std::numeric_limits<std::int32_t>::max();

std::int64_t sum(const std::vector<std::int64_t>& v) { return std::accumulate(v.begin(), v.end(), std::int64_t{0}); }

void upload(Context& ctx, GrowingTensor* to, const std::vector<std::int32_t>& from, std::int64_t rows) {
  ops::copy_from_host(ctx, to->rows(rows), from.data());
}

}  // namespace

/// Time inside an exchange: nothing is computed meanwhile.
struct ExchangeHop::Exposed {
  Exposed(Context& ctx, DispatchCounters& counters) : span(ctx, "comm.all_to_all"), counters_(counters) {}
  ~Exposed() {
    counters_[DispatchCounters::ExposedSeconds] +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  Exposed(const Exposed&) = delete;
  Exposed& operator=(const Exposed&) = delete;

 private:
  const Span span;
  DispatchCounters& counters_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

HopPlan ExchangeHop::reserve(Arena& arena, std::int64_t rows, std::int64_t picks) const {
  HopPlan p;
  p.row = arena.growing(DType::I32, {std::min(rows * fan_, picks)});
  p.pick = arena.growing(DType::I32, {picks});
  p.places = arena.growing(DType::I32, {rows, fan_});
  return p;
}

void ExchangeHop::count_bytes(const std::vector<std::int64_t>& items, std::size_t item_bytes) {
  const std::vector<int>& nodes = comm_.nodes();
  const auto self = static_cast<std::size_t>(comm_.rank());
  for (std::size_t r = 0; r < items.size(); ++r) {
    if (r == self) continue;
    const auto name = nodes[r] == nodes[self] ? DispatchCounters::BytesIntra : DispatchCounters::BytesInter;
    counters_[name] += static_cast<double>(items[r]) * static_cast<double>(item_bytes);
  }
}

void ExchangeHop::plan(Context& ctx, HopPlan& p, RowPicks& in, std::vector<float>& gates,
                       const std::vector<std::int32_t>& destination, std::vector<std::int64_t>& arrived_from) {
  const int ranks = comm_.size(), self = comm_.rank();
  const auto n = static_cast<std::size_t>(ranks), me = static_cast<std::size_t>(self);
  plan_send(send_, in, destination, self, ranks, fan_);
  p.input_rows = in.rows();
  p.picks = in.picks();
  p.sent = send_.sent_rows();
  p.send_rows = send_.rows;
  p.send_picks = send_.picks;
  const std::int64_t own_rows = std::exchange(p.send_rows[me], 0), own_picks = std::exchange(p.send_picks[me], 0);
  p.sent_away = p.sent - own_rows;
  p.picks_away = p.picks - own_picks;

  // One pair of counts for each peer that can be reached, whether it is or not.
  counts_out_.clear();
  for (std::size_t r = 0; r < n; ++r)
    if (reach_.to[r] != 0) counts_out_.insert(counts_out_.end(), {p.send_rows[r], p.send_picks[r]});
  const std::int64_t to = sum(reach_.to), from = sum(reach_.from);
  counts_in_.resize(static_cast<std::size_t>(2 * from));
  {
    const Exposed exposed(ctx, counters_);
    comm_.all_to_all_v(host_view(counts_in_, 0, counts_in_.size(), {from, 2}), reach_.from,
                       host_view(counts_out_, 0, counts_out_.size(), {to, 2}), reach_.to);
  }
  count_bytes(reach_.to, 2 * sizeof(std::int64_t));
  p.recv_rows.assign(n, 0);
  p.recv_picks.assign(n, 0);
  for (std::size_t r = 0, at = 0; r < n; ++r) {
    if (reach_.from[r] == 0) continue;
    p.recv_rows[r] = counts_in_[at++];
    p.recv_picks[r] = counts_in_[at++];
  }
  p.arrived_away = sum(p.recv_rows);
  p.arrived_picks_away = sum(p.recv_picks);
  p.arrived = p.arrived_away + own_rows;
  p.arrived_picks = p.arrived_picks_away + own_picks;
  require(std::max(p.arrived_picks, p.input_rows * fan_) <= kMostPicks,
          "{} picks of {} tokens come to the experts of rank {}, a plan numbers at most {}: use a smaller "
          "train.micro_batch_sequences, or more ranks in parallel.expert_parallel",
          p.arrived_picks, p.arrived, self, kMostPicks);
  arrived_from = p.recv_rows;
  arrived_from[me] = own_rows;
  exchange_picks(ctx, p, in, gates);

  p.grown = p.row->ensure(p.sent);
  p.grown += p.pick->ensure(p.picks);
  p.grown += p.places->ensure(p.input_rows);
  upload(ctx, p.row, send_.row, p.sent);
  upload(ctx, p.pick, send_.pick, p.picks);
  upload(ctx, p.places, send_.sent, p.input_rows);
  p.grown += staging_.send->ensure(std::max(p.sent_away, p.arrived_away));
  p.grown += staging_.arrive[index_]->ensure(std::max(p.sent, p.arrived));
  p.grown += staging_.pick_send->ensure(std::max(p.picks, p.arrived_picks));
  p.grown += staging_.pick_arrive[index_]->ensure(std::max(p.picks, p.arrived_picks));
}

// Picks and gates in one message. This rank's own follow those of the others, without travelling.
void ExchangeHop::exchange_picks(Context& ctx, const HopPlan& p, RowPicks& in, std::vector<float>& gates) {
  static_assert(sizeof(PickOnWire) == 8);
  const auto picks = static_cast<std::size_t>(p.picks), arrived = static_cast<std::size_t>(p.arrived_picks);
  wire_out_.resize(picks);
  for (std::size_t i = 0; i < picks; ++i)
    wire_out_[i] = {send_.wire[i], gates[static_cast<std::size_t>(send_.pick[i])]};
  wire_in_.resize(arrived);
  std::copy(wire_out_.begin() + p.picks_away, wire_out_.end(), wire_in_.begin() + p.arrived_picks_away);
  {
    const Exposed exposed(ctx, counters_);
    comm_.all_to_all_v({wire_in_.data(), DType::I64, {p.arrived_picks_away}}, p.recv_picks,
                       {wire_out_.data(), DType::I64, {p.picks_away}}, p.send_picks);
  }
  count_bytes(p.send_picks, sizeof(PickOnWire));
  picks_in_.resize(arrived);
  gates.resize(arrived);
  for (std::size_t i = 0; i < arrived; ++i) picks_in_[i] = wire_in_[i].expert, gates[i] = wire_in_[i].gate;
  picks_of_wire(in, picks_in_, p.arrived);
}

void ExchangeHop::send_start(Context& ctx, const HopPlan& p, TensorView in) {
  const TensorView out = staging_.send->rows(p.sent_away), arrive = staging_.arrive[index_]->rows(p.arrived);
  ops::gather_rows(ctx, out, in, p.row->rows(0, p.sent_away));
  ops::gather_rows(ctx, arrive.rows(p.arrived_away, p.arrived), in, p.row->rows(p.sent_away, p.sent));
  const Exposed exposed(ctx, counters_);
  comm_.all_to_all_v_start(arrive.rows(0, p.arrived_away), p.recv_rows, out, p.send_rows);
  count_bytes(p.send_rows, static_cast<std::size_t>(in.dim(1)) * sizeof(float));
}

TensorView ExchangeHop::send_finish(Context& ctx, const HopPlan& p) {
  const Exposed exposed(ctx, counters_);
  comm_.all_to_all_v_finish();
  return staging_.arrive[index_]->rows(p.arrived);
}

void ExchangeHop::return_start(Context& ctx, const HopPlan& p, TensorView rows, TensorView table) {
  const TensorView out = staging_.send->rows(p.arrived_away), back = staging_.arrive[index_]->rows(p.sent);
  ops::combine_rows(ctx, out, rows, table.rows(0, p.arrived_away), 0.0F);
  ops::combine_rows(ctx, back.rows(p.sent_away, p.sent), rows, table.rows(p.arrived_away, p.arrived), 0.0F);
  const Exposed exposed(ctx, counters_);
  comm_.all_to_all_v_start(back.rows(0, p.sent_away), p.send_rows, out, p.recv_rows);
  count_bytes(p.recv_rows, static_cast<std::size_t>(rows.dim(1)) * sizeof(float));
}

TensorView ExchangeHop::return_finish(Context& ctx, const HopPlan& p) {
  const Exposed exposed(ctx, counters_);
  comm_.all_to_all_v_finish();
  return staging_.arrive[index_]->rows(p.sent);
}

void ExchangeHop::return_picks(Context& ctx, const HopPlan& p, TensorView out) {
  const TensorView here = staging_.pick_send->rows(p.arrived_picks), back = staging_.pick_arrive[index_]->rows(p.picks);
  ops::copy(ctx, back.rows(p.picks_away, p.picks), here.rows(p.arrived_picks_away, p.arrived_picks));
  {
    const Exposed exposed(ctx, counters_);
    comm_.all_to_all_v(back.rows(0, p.picks_away), p.send_picks, here.rows(0, p.arrived_picks_away), p.recv_picks);
  }
  count_bytes(p.recv_picks, sizeof(float));
  ops::scatter_elements(ctx, out, back, p.pick->rows(p.picks));
}

}  // namespace emox
