#include "parallel/expert/exchange_dispatcher.h"

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "parallel/expert/exchange_hop.h"
#include "parallel/expert/plan_counts.h"
#include "parallel/expert/transfer_queue.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/ops/basic.h"
#include "runtime/ops/dispatch_plan.h"
#include "runtime/ops/moe.h"
#include "runtime/telemetry/spans.h"

namespace emox {
namespace {

struct ExchangeHandle final : DispatchHandle {
  std::vector<HopPlan> hops;
  GrowingTensor* first = nullptr;  ///< i32 [tokens + 1] picks of a token
  TensorView maps;                 ///< i32 [3, experts] rank, node, place on this rank or -1
  TensorView gateway;              ///< i32 [experts] the rank that passes rows on to the expert's node
  bool maps_are_there = false;
  PlanCounts::Memory counts;
  TensorView source_rows;                ///< i64 [ranks] rows by source of the last hop
  GrowingTensor* expert_row = nullptr;   ///< i32 [rows] arrived row of each expert row
  GrowingTensor* expert_pick = nullptr;  ///< i32 [rows] arrived pick of each expert row
  GrowingTensor* slots = nullptr;        ///< i32 [arrived rows, m] expert rows of an arrived row
  std::int64_t remote_picks = 0;         ///< picks of experts on other ranks
  std::int64_t documents = -1;           ///< of the micro-batch; -1: nobody says
  // What dispatch_start sends.
  TensorView ids, gates;
};

int largest_node(const std::vector<int>& nodes) {
  std::vector<int> size(nodes.size(), 0);
  for (const int n : nodes) ++size[idx(n)];
  return *std::max_element(size.begin(), size.end());
}

std::span<const std::int32_t> placed(DispatchKind kind, const Communicator& comm, const ExchangeLayer& layer) {
  require(kind != DispatchKind::Local && layer.placement.ranks() == comm.size(),
          "a placement on {} ranks was given to an expert group of {}", layer.placement.ranks(), comm.size());
  return layer.placement.of_layer(layer.row);
}

class ExchangeDispatcher final : public TokenDispatcher {
 public:
  ExchangeDispatcher(DispatchKind kind, Communicator& comm, const ExchangeLayer& layer, ExchangeStaging& staging,
                     DispatchCounters& counters);

  std::int64_t expected_rows(std::int64_t tokens) const override {
    // A quarter above the mean: random placement balances that well once training has settled.
    const std::int64_t all = tokens * comm_.size();
    const std::int64_t mean = (all * top_k_ * local_experts_ + experts_ - 1) / experts_;
    return std::min(mean + mean / 4, all * max_picks_here_);
  }
  bool overlaps() const override { return staging_.overlap; }
  std::unique_ptr<DispatchHandle> reserve(Arena& arena, std::int64_t tokens) const override;
  void plan_start(Context& compute, DispatchHandle& base, TensorView ids, TensorView gates,
                  const DocumentPools& pools) override;
  void plan_finish(Context& compute, DispatchHandle& base) override;

  void dispatch_start(Context& ctx, DispatchHandle& base, TensorView x) override {
    const Span span(ctx, "phase.dispatch");
    ExchangeHandle& h = of(base);
    Context transfer = transfer_context(ctx, comm_);
    const ops::RowPicks tokens{h.ids, h.first->rows(h.tokens + 1)};
    hops_[0].dispatch_start(transfer, h.hops[0], x, tokens, h.gates, destination(h, 0));
    count_copies(h, row_bytes(x));
    if (!staging_.overlap) join_compute(ctx, transfer);
  }
  void dispatch_finish(Context& compute, DispatchHandle& base, TensorView rows, TensorView row_gates) override;

  void combine(Context& ctx, DispatchHandle& base, TensorView out, TensorView rows) override {
    const Span span(ctx, "phase.combine");
    Context transfer = transfer_context(ctx, comm_);
    leave_compute(ctx, transfer);
    return_rows(transfer, of(base), out, nullptr, rows, 1.0F);
    join_compute(ctx, transfer);
  }

  void combine_backward_start(Context& ctx, DispatchHandle& base, TensorView dout) override {
    const Span span(ctx, "phase.dispatch");
    ExchangeHandle& h = of(base);
    Context transfer = transfer_context(ctx, comm_);
    leave_compute(ctx, transfer);
    hops_[0].send_start(transfer, h.hops[0], dout);
    count_copies(h, row_bytes(dout));
    if (!staging_.overlap) join_compute(ctx, transfer);
  }
  void combine_backward_finish(Context& ctx, DispatchHandle& base, TensorView drows) override {
    const Span span(ctx, "phase.dispatch");
    ExchangeHandle& h = of(base);
    Context transfer = transfer_context(ctx, comm_);
    TensorView arrived = hops_[0].send_finish(transfer, h.hops[0]);
    for (std::size_t i = 1; i < hops_.size(); ++i) {
      hops_[i].send_start(transfer, h.hops[i], arrived);
      arrived = hops_[i].send_finish(transfer, h.hops[i]);
    }
    ops::gather_rows(transfer, drows, arrived, h.expert_row->rows(h.rows));
    join_compute(ctx, transfer);
  }

  void dispatch_backward(Context& ctx, DispatchHandle& base, const DispatchGradients& g) override {
    const Span span(ctx, "phase.combine");
    ExchangeHandle& h = of(base);
    Context transfer = transfer_context(ctx, comm_);
    leave_compute(ctx, transfer);
    // Gate gradients from expert order into the order in which the picks arrived.
    ops::scatter_elements(transfer, staging_.pick_send->rows(h.rows), g.drow_gates, h.expert_pick->rows(h.rows));
    return_rows(transfer, h, g.dx, &g.dgates, g.drows, g.beta);
    join_compute(ctx, transfer);
  }

 private:
  static ExchangeHandle& of(DispatchHandle& base) { return static_cast<ExchangeHandle&>(base); }
  bool two_level() const { return hops_.size() > 1; }
  /// Where a row of hop i goes for an expert: i32 [experts].
  TensorView destination(const ExchangeHandle& h, std::size_t i) const {
    return two_level() && i == 0 ? h.gateway : h.maps[0];
  }
  void upload_maps(Context& ctx, ExchangeHandle& h) const;
  /// Who gets how much was told when this micro-batch was planned for the first time.
  bool known() const { return staging_.again && staging_.micro_batch < books_.size(); }
  void count_visits(ExchangeHandle& h);
  void check_reach(const ExchangeHandle& h);
  // out = beta out + sum of rows; with dgates, what lies in staging.pick_send goes with the rows.
  void return_rows(Context& ctx, ExchangeHandle& h, TensorView out, const TensorView* dgates, TensorView rows,
                   float beta);

  static std::size_t row_bytes(const TensorView& rows) { return idx(rows.dim(1)) * size_of(rows.dtype()); }
  void count_copies(const ExchangeHandle& h, std::size_t bytes) {
    counters_[DispatchCounters::BytesCopies] += static_cast<double>(h.remote_picks) * static_cast<double>(bytes);
  }

  Communicator& comm_;
  const std::int64_t top_k_, experts_;
  ExchangeStaging& staging_;
  DispatchCounters& counters_;
  std::int64_t local_experts_ = 0, max_picks_here_ = 0, nodes_ = 0;
  PlanCounts counts_;
  std::vector<std::int32_t> maps_;  ///< as in the handle
  std::vector<ExchangeHop> hops_;
  std::vector<std::vector<std::int64_t>> books_;  ///< PlanCounts::book of the step's micro-batches
  std::vector<std::int64_t> from_;                ///< rows by source; kept so that a step allocates nothing
};

ExchangeDispatcher::ExchangeDispatcher(DispatchKind kind, Communicator& comm, const ExchangeLayer& layer,
                                       ExchangeStaging& staging, DispatchCounters& counters)
    : comm_(comm),
      top_k_(layer.routed_top_k),
      experts_(layer.placement.experts()),
      staging_(staging),
      counters_(counters),
      counts_(comm, placed(kind, comm, layer), kind == DispatchKind::TwoLevel) {
  const auto& [placement, row, top_k] = layer;
  const auto rank_of = placement.of_layer(row);
  const std::vector<std::int32_t> here = placement.experts_of(row, comm.rank());
  const std::vector<int>& nodes = comm.nodes();
  local_experts_ = static_cast<std::int64_t>(here.size());
  max_picks_here_ = std::min<std::int64_t>(top_k, local_experts_);
  nodes_ = *std::max_element(nodes.begin(), nodes.end()) + 1;
  maps_.assign(rank_of.begin(), rank_of.end());
  for (const std::int32_t r : rank_of) maps_.push_back(nodes[idx(r)]);
  maps_.resize(3 * rank_of.size(), -1);
  for (std::size_t i = 0; i < here.size(); ++i) maps_[2 * rank_of.size() + idx(here[i])] = static_cast<std::int32_t>(i);
  const bool by_node = kind == DispatchKind::TwoLevel;
  if (by_node) hops_.emplace_back(comm, 0, std::min(top_k, nodes_), staging, counters);
  hops_.emplace_back(comm, static_cast<int>(hops_.size()),
                     std::min<std::int64_t>(top_k, by_node ? largest_node(nodes) : comm.size()), staging, counters);
}

std::unique_ptr<DispatchHandle> ExchangeDispatcher::reserve(Arena& arena, std::int64_t tokens) const {
  auto h = std::make_unique<ExchangeHandle>();
  h->tokens = tokens;
  h->rows = expected_rows(tokens);
  h->offsets = arena.allocate(DType::I64, {local_experts_ + 1});
  h->first = arena.growing(DType::I32, {tokens + 1});
  h->maps = arena.i32({3, experts_});
  h->gateway = arena.i32({experts_});
  const std::int64_t ranks = comm_.size();
  h->counts = counts_.reserve(arena);
  h->source_rows = arena.allocate(DType::I64, {ranks});
  std::int64_t rows = tokens;
  for (std::size_t i = 0; i < hops_.size(); ++i) {
    h->hops.push_back(hops_[i].reserve(arena, rows, i == 0 ? tokens * top_k_ : expected_rows(tokens)));
    rows = tokens * std::min<std::int64_t>(top_k_, ranks);
  }
  h->expert_row = arena.growing(DType::I32, {h->rows});
  h->expert_pick = arena.growing(DType::I32, {h->rows});
  h->slots = arena.growing(DType::I32, {rows, max_picks_here_});
  return h;
}

void ExchangeDispatcher::upload_maps(Context& ctx, ExchangeHandle& h) const {
  if (std::exchange(h.maps_are_there, true)) return;
  ops::copy_from_host(ctx, h.maps, maps_.data());
  ops::copy_from_host(ctx, h.gateway, counts_.gateways().data());
}

void ExchangeDispatcher::plan_start(Context& compute, DispatchHandle& base, TensorView ids, TensorView gates,
                                    const DocumentPools& pools) {
  const Span span(compute, "dispatch.plan");
  Context ctx = transfer_context(compute, comm_);
  leave_compute(compute, ctx);
  ExchangeHandle& h = of(base);
  const std::int64_t top_k = ids.dim(1);
  require<ShapeError>(top_k <= top_k_, "{} picks a token, memory was reserved for {}", top_k, top_k_);
  upload_maps(ctx, h);
  h.tokens = ids.dim(0);
  h.ids = ids.reshape({ids.numel()});
  h.gates = gates;
  h.documents = pools.segments.null() ? -1 : pools.segments.numel() - 1;
  h.grown = h.first->ensure(h.tokens + 1);
  const ops::RowPicks tokens{h.ids, h.first->rows(h.tokens + 1)};
  ops::first_picks(ctx, tokens.first, top_k);
  if (known()) return;
  const PlanNumbers<TensorView>& c = h.counts.counted;
  ops::count_destinations(ctx, c.by_rank.reshape({comm_.size(), 2}), tokens, h.maps[0]);
  ops::count_destinations(ctx, c.by_node.reshape({nodes_, 2}), tokens, h.maps[1]);
  if (!pools.segments.null()) {
    ops::pool_reach(ctx, c.rank_limit, c.ranks_reached, pools.pool, pools.segments, h.maps[0], pools.free_tokens);
    ops::pool_reach(ctx, c.node_limit, c.nodes_reached, pools.pool, pools.segments, h.maps[1], pools.free_tokens);
  }
  counts_.start(ctx, h.counts, staging_.counts, counters_);
}

void ExchangeDispatcher::plan_finish(Context& compute, DispatchHandle& base) {
  Context ctx = transfer_context(compute, comm_);
  ExchangeHandle& h = of(base);
  if (known()) {
    counts_.recall(books_[staging_.micro_batch]);
  } else {
    counts_.finish(ctx, h.counts, staging_.counts);
    books_.resize(std::max(books_.size(), staging_.micro_batch + 1));
    books_[staging_.micro_batch] = counts_.book();
  }
  count_visits(h);
  check_reach(h);
  std::int64_t rows = h.tokens;
  for (std::size_t i = 0; i < hops_.size(); ++i) {
    HopPlan& hop = h.hops[i];
    hops_[i].set_counts(ctx, hop, rows, counts_.hops()[i].sends, counts_.hops()[i].receives);
    h.grown += hop.grown;
    counters_[DispatchCounters::Rows] += static_cast<double>(hop.sent_away);
    rows = hop.arrived;
  }
  const HopPlan& last = h.hops.back();
  h.rows = last.arrived_picks;
  counters_[DispatchCounters::ReceivedRows] += static_cast<double>(h.rows);
  h.grown += h.expert_row->ensure(h.rows);
  h.grown += h.expert_pick->ensure(h.rows);
  h.grown += h.slots->ensure(last.arrived);
  from_ = last.output_splits;
  from_[idx(comm_.rank())] = last.arrived - last.arrived_away;
  ops::copy_from_host(ctx, h.source_rows, from_.data());
}

void ExchangeDispatcher::dispatch_finish(Context& compute, DispatchHandle& base, TensorView rows,
                                         TensorView row_gates) {
  const Span span(compute, "phase.dispatch");
  Context ctx = transfer_context(compute, comm_);
  ExchangeHandle& h = of(base);
  ExchangeHop::Arrived a = hops_[0].dispatch_finish(ctx, h.hops[0]);
  for (std::size_t i = 1; i < hops_.size(); ++i) {
    hops_[i].dispatch_start(ctx, h.hops[i], a.rows, a.picks, a.gates, destination(h, i));
    a = hops_[i].dispatch_finish(ctx, h.hops[i]);
  }
  const TensorView row = h.expert_row->rows(h.rows), pick = h.expert_pick->rows(h.rows);
  ops::plan_experts(ctx, {h.offsets, row, pick, h.slots->rows(a.picks.rows())}, a.picks, h.source_rows, h.maps[2],
                    comm_.rank());
  ops::gather_elements(ctx, row_gates, a.gates, pick);
  ops::gather_rows(ctx, rows, a.rows, row);
  join_compute(compute, ctx);
}

void ExchangeDispatcher::return_rows(Context& ctx, ExchangeHandle& h, TensorView out, const TensorView* dgates,
                                     TensorView rows, float beta) {
  count_copies(h, row_bytes(rows) + (dgates != nullptr ? sizeof(float) : 0));
  TensorView slots = h.slots->rows(h.hops.back().arrived);
  for (std::size_t i = hops_.size(); i-- > 0;) {
    hops_[i].return_start(ctx, h.hops[i], rows, slots, dgates != nullptr);
    rows = hops_[i].return_finish(ctx, h.hops[i]);
    slots = h.hops[i].slots->rows(h.hops[i].input_rows);
    if (dgates == nullptr) continue;
    // One hop's picks went out as those that had arrived by the hop before.
    hops_[i].take_pick_values(ctx, h.hops[i], i == 0 ? *dgates : staging_.pick_send->rows(h.hops[i - 1].arrived_picks));
  }
  ops::combine_rows(ctx, out, rows, slots, beta);
}

// Ranks and nodes that hold an expert of a token, its own included.
void ExchangeDispatcher::count_visits(ExchangeHandle& h) {
  const auto by_rank = counts_.numbers().by_rank, by_node = counts_.numbers().by_node;
  std::int64_t ranks = 0, visited_nodes = 0;
  h.remote_picks = 0;
  for (std::size_t r = 0; 2 * r < by_rank.size(); ++r) {
    ranks += by_rank[2 * r];
    if (static_cast<int>(r) != comm_.rank()) h.remote_picks += by_rank[2 * r + 1];
  }
  for (std::size_t n = 0; 2 * n < by_node.size(); ++n) visited_nodes += by_node[2 * n];
  counters_[DispatchCounters::TokenVisits] += static_cast<double>(h.tokens);
  counters_[DispatchCounters::Ranks] += static_cast<double>(ranks);
  counters_[DispatchCounters::Nodes] += static_cast<double>(visited_nodes);
  // The lists of picks and their gates would be the same without deduplication.
  constexpr double kPickBytes = sizeof(std::int32_t) + sizeof(float), kCountBytes = 2 * sizeof(std::int64_t);
  counters_[DispatchCounters::BytesCopies] += static_cast<double>(h.remote_picks) * kPickBytes +
                                              (known() ? 0.0 : static_cast<double>(comm_.size() - 1) * kCountBytes);
}

// The pools were known before the picks: no rank is sent more rows than the documents that can reach it have tokens,
// and those that cannot have tokens that are free of their pool.
void ExchangeDispatcher::check_reach(const ExchangeHandle& h) {
  if (h.documents < 0) return;
  const auto& read = counts_.numbers();
  counters_[DispatchCounters::Documents] += static_cast<double>(h.documents);
  counters_[DispatchCounters::DocumentRanks] += static_cast<double>(read.ranks_reached[0]);
  const auto rows = two_level() ? read.by_node : read.by_rank;
  const auto limit = two_level() ? read.node_limit : read.rank_limit;
  for (std::size_t d = 0; d < limit.size(); ++d)
    require(rows[2 * d] <= limit[d],
            "{} rows are to go to {} {}, but the pools let only {} tokens reach it: picks and pools contradict each "
            "other",
            rows[2 * d], two_level() ? "node" : "rank", d, limit[d]);
}

}  // namespace

std::unique_ptr<TokenDispatcher> make_exchange_dispatcher(DispatchKind kind, Communicator& expert_group,
                                                          const ExchangeLayer& layer, ExchangeStaging& staging,
                                                          DispatchCounters& counters) {
  return std::make_unique<ExchangeDispatcher>(kind, expert_group, layer, staging, counters);
}

}  // namespace emox
