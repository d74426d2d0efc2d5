#include "parallel/expert/exchange_dispatcher.h"

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "parallel/expert/exchange_hop.h"
#include "runtime/core/error.h"
#include "runtime/ops/basic.h"
#include "runtime/ops/moe.h"
#include "runtime/telemetry/spans.h"

namespace emox {
namespace {

struct ExchangeHandle final : DispatchHandle {
  std::vector<HopPlan> hops;
  GrowingTensor* expert_row = nullptr;   ///< i32 [rows] arrived row of each expert row
  GrowingTensor* expert_pick = nullptr;  ///< i32 [rows] arrived pick of each expert row
  GrowingTensor* held = nullptr;         ///< i32 [arrived rows, fan] expert rows of an arrived row
  std::int64_t remote_picks = 0;         ///< picks of experts on other ranks
};

int largest_node(const std::vector<int>& nodes) {
  std::vector<int> size(nodes.size(), 0);
  for (const int n : nodes) ++size[static_cast<std::size_t>(n)];
  return *std::max_element(size.begin(), size.end());
}

/// Whoever holds an expert is reached by all; `in_node`: by the ranks of its node.
ExchangeHop::Reach expert_reach(std::span<const std::int32_t> rank_of_expert, const std::vector<int>& nodes, int self,
                                bool in_node) {
  const std::size_t ranks = nodes.size(), me = static_cast<std::size_t>(self);
  std::vector<bool> holds(ranks, false);
  for (const std::int32_t r : rank_of_expert) holds[static_cast<std::size_t>(r)] = true;
  ExchangeHop::Reach reach{std::vector<std::int64_t>(ranks, 0), std::vector<std::int64_t>(ranks, 0)};
  for (std::size_t r = 0; r < ranks; ++r) {
    if (r == me || (in_node && nodes[r] != nodes[me])) continue;
    reach.to[r] = holds[r] ? 1 : 0;
    reach.from[r] = holds[me] ? 1 : 0;
  }
  return reach;
}

/// Each rank has one gateway on every node.
ExchangeHop::Reach gateway_reach(std::span<const std::int32_t> rank_of_expert, const std::vector<int>& nodes,
                                 int self) {
  const std::size_t ranks = nodes.size();
  ExchangeHop::Reach reach{std::vector<std::int64_t>(ranks, 0), std::vector<std::int64_t>(ranks, 0)};
  for (std::size_t r = 0; r < ranks; ++r) {
    const bool is_self = static_cast<int>(r) == self;
    for (const std::int32_t gateway : gateways(rank_of_expert, nodes, static_cast<int>(r))) {
      if (is_self && gateway != self) reach.to[static_cast<std::size_t>(gateway)] = 1;
      if (!is_self && gateway == self) reach.from[r] = 1;
    }
  }
  return reach;
}

class ExchangeDispatcher final : public TokenDispatcher {
 public:
  ExchangeDispatcher(DispatchKind kind, Communicator& comm, const ExpertPlacement& placement, std::int64_t layer,
                     std::int64_t top_k, ExchangeStaging& staging, DispatchCounters& counters)
      : comm_(comm), top_k_(top_k), experts_(placement.experts()), staging_(staging), counters_(counters) {
    require(kind != DispatchKind::Local && placement.ranks() == comm.size(),
            "a placement on {} ranks was given to an expert group of {}", placement.ranks(), comm.size());
    const auto row = placement.of_layer(layer);
    rank_of_expert_.assign(row.begin(), row.end());
    const std::vector<std::int32_t> held = placement.experts_of(layer, comm.rank());
    local_experts_ = static_cast<std::int64_t>(held.size());
    local_expert_.assign(row.size(), -1);
    for (std::size_t i = 0; i < held.size(); ++i)
      local_expert_[static_cast<std::size_t>(held[i])] = static_cast<std::int32_t>(i);
    held_fan_ = std::min<std::int64_t>(top_k, local_experts_);
    const std::vector<int>& nodes = comm.nodes();
    if (kind == DispatchKind::TwoLevel) {
      const std::int64_t node_count = *std::max_element(nodes.begin(), nodes.end()) + 1;
      destinations_.push_back(gateways(rank_of_expert_, nodes, comm.rank()));
      hops_.emplace_back(comm, gateway_reach(rank_of_expert_, nodes, comm.rank()), 0, std::min(top_k, node_count),
                         staging, counters);
    }
    const bool in_node = kind == DispatchKind::TwoLevel;
    const std::int64_t fan = std::min<std::int64_t>(top_k, in_node ? largest_node(nodes) : comm.size());
    destinations_.push_back(rank_of_expert_);
    hops_.emplace_back(comm, expert_reach(rank_of_expert_, nodes, comm.rank(), in_node), static_cast<int>(hops_.size()),
                       fan, staging, counters);
  }

  std::int64_t expected_rows(std::int64_t tokens) const override {
    // A quarter above the mean: random placement balances that well once training has settled.
    const std::int64_t all = tokens * comm_.size();
    const std::int64_t mean = (all * top_k_ * local_experts_ + experts_ - 1) / experts_;
    return std::min(mean + mean / 4, all * held_fan_);
  }

  std::shared_ptr<DispatchHandle> reserve(Arena& arena, std::int64_t tokens) const override {
    auto h = std::make_shared<ExchangeHandle>();
    h->tokens = tokens;
    h->rows = expected_rows(tokens);
    h->offsets = arena.allocate(DType::I64, {local_experts_ + 1});
    std::int64_t rows = tokens;
    for (std::size_t i = 0; i < hops_.size(); ++i) {
      h->hops.push_back(hops_[i].reserve(arena, rows, i == 0 ? tokens * top_k_ : expected_rows(tokens)));
      rows = tokens * std::min<std::int64_t>(top_k_, comm_.size());
    }
    h->expert_row = arena.growing(DType::I32, {h->rows});
    h->expert_pick = arena.growing(DType::I32, {h->rows});
    h->held = arena.growing(DType::I32, {rows, held_fan_});
    return h;
  }

  void plan(Context& ctx, DispatchHandle& base, TensorView ids, TensorView gates, const DocumentPools& pools) override {
    const Span span(ctx, "dispatch.plan");
    auto& h = static_cast<ExchangeHandle&>(base);
    h.tokens = ids.dim(0);
    ids_.resize(static_cast<std::size_t>(ids.numel()));
    const std::int64_t top_k = ids.dim(1);
    require<ShapeError>(top_k <= top_k_, "{} picks a token, memory was reserved for {}", top_k, top_k_);
    ops::copy_to_host(ctx, ids_.data(), ids);
    gates_.resize(ids_.size());
    ops::copy_to_host(ctx, gates_.data(), gates);
    count_visits(h, top_k);
    picks_of_tokens(rows_, ids_, top_k);
    for (std::size_t i = 0; i < hops_.size(); ++i) {
      hops_[i].plan(ctx, h.hops[i], rows_, gates_, destinations_[i], arrived_from_);
      counters_[DispatchCounters::Rows] += static_cast<double>(h.hops[i].sent_away);
      if (i == 0) check_reach(ctx, h.hops[0], pools);
    }
    h.grown = 0;
    for (const HopPlan& hop : h.hops) h.grown += hop.grown;
    plan_experts(order_, rows_, arrived_from_, comm_.rank(), local_expert_, local_experts_, held_fan_);
    h.rows = rows_.picks();
    counters_[DispatchCounters::ReceivedRows] += static_cast<double>(h.rows);
    h.grown += h.expert_row->ensure(h.rows);
    h.grown += h.expert_pick->ensure(h.rows);
    h.grown += h.held->ensure(rows_.rows());
    ops::copy_from_host(ctx, h.offsets, order_.offsets.data());
    ops::copy_from_host(ctx, h.expert_row->rows(h.rows), order_.row.data());
    ops::copy_from_host(ctx, h.expert_pick->rows(h.rows), order_.pick.data());
    ops::copy_from_host(ctx, h.held->rows(rows_.rows()), order_.held.data());
    arrived_gates_ = staging_.pick_arrive[hops_.size() - 1]->rows(h.rows);
    ops::copy_from_host(ctx, arrived_gates_, gates_.data());
  }

  void dispatch_start(Context& ctx, TensorView x, DispatchHandle& base) override {
    const Span span(ctx, "phase.dispatch");
    start_rows(ctx, static_cast<ExchangeHandle&>(base), x);
  }
  void dispatch_finish(Context& ctx, TensorView rows, TensorView row_gates, DispatchHandle& base) override {
    const Span span(ctx, "phase.dispatch");
    auto& h = static_cast<ExchangeHandle&>(base);
    ops::gather_elements(ctx, row_gates, arrived_gates_, h.expert_pick->rows(h.rows));
    finish_rows(ctx, h, rows);
  }

  void combine_start(Context& ctx, TensorView rows, DispatchHandle& base) override {
    const Span span(ctx, "phase.combine");
    start_return(ctx, static_cast<ExchangeHandle&>(base), rows);
  }
  void combine_finish(Context& ctx, TensorView out, DispatchHandle& base) override {
    const Span span(ctx, "phase.combine");
    finish_return(ctx, static_cast<ExchangeHandle&>(base), out, 1.0F);
  }

  void combine_backward_start(Context& ctx, TensorView dout, DispatchHandle& base) override {
    const Span span(ctx, "phase.dispatch");
    start_rows(ctx, static_cast<ExchangeHandle&>(base), dout);
  }
  void combine_backward_finish(Context& ctx, TensorView drows, DispatchHandle& base) override {
    const Span span(ctx, "phase.dispatch");
    finish_rows(ctx, static_cast<ExchangeHandle&>(base), drows);
  }

  void dispatch_backward_start(Context& ctx, TensorView drows, TensorView drow_gates, DispatchHandle& base) override {
    const Span span(ctx, "phase.combine");
    auto& h = static_cast<ExchangeHandle&>(base);
    // The gate gradients first, from expert order into the order in which the picks arrived.
    ops::scatter_elements(ctx, staging_.pick_send->rows(h.rows), drow_gates, h.expert_pick->rows(h.rows));
    for (std::size_t i = hops_.size(); i-- > 1;)
      hops_[i].return_picks(ctx, h.hops[i], staging_.pick_send->rows(h.hops[i - 1].arrived_picks));
    start_return(ctx, h, drows);
  }
  void dispatch_backward_finish(Context& ctx, TensorView dx, TensorView dgates, DispatchHandle& base,
                                float beta) override {
    const Span span(ctx, "phase.combine");
    auto& h = static_cast<ExchangeHandle&>(base);
    finish_return(ctx, h, dx, beta);
    hops_[0].return_picks(ctx, h.hops[0], dgates);
  }

 private:
  void start_rows(Context& ctx, ExchangeHandle& h, TensorView x) {
    hops_[0].send_start(ctx, h.hops[0], x);
    count_copies(h, x.dim(1));
  }
  void finish_rows(Context& ctx, ExchangeHandle& h, TensorView rows) {
    TensorView arrived = hops_[0].send_finish(ctx, h.hops[0]);
    for (std::size_t i = 1; i < hops_.size(); ++i) {
      hops_[i].send_start(ctx, h.hops[i], arrived);
      arrived = hops_[i].send_finish(ctx, h.hops[i]);
    }
    ops::gather_rows(ctx, rows, arrived, h.expert_row->rows(h.rows));
  }
  void start_return(Context& ctx, ExchangeHandle& h, TensorView rows) {
    const std::size_t last = hops_.size() - 1;
    hops_[last].return_start(ctx, h.hops[last], rows, h.held->rows(h.hops[last].arrived));
    count_copies(h, rows.dim(1));
  }
  void finish_return(Context& ctx, ExchangeHandle& h, TensorView out, float beta) {
    for (std::size_t i = hops_.size() - 1;; --i) {
      const TensorView back = hops_[i].return_finish(ctx, h.hops[i]);
      const TensorView places = h.hops[i].places->rows(h.hops[i].input_rows);
      if (i == 0) {
        ops::combine_rows(ctx, out, back, places, beta);
        return;
      }
      hops_[i - 1].return_start(ctx, h.hops[i - 1], back, places);
    }
  }

  // Ranks and nodes that hold an expert of a token, its own included.
  void count_visits(ExchangeHandle& h, std::int64_t top_k) {
    const std::vector<int>& nodes = comm_.nodes();
    rank_seen_.assign(nodes.size(), -1);
    node_seen_.assign(nodes.size(), -1);
    std::int64_t ranks = 0, visited_nodes = 0;
    h.remote_picks = 0;
    for (std::size_t s = 0; s < ids_.size(); ++s) {
      const auto token = static_cast<std::int64_t>(s) / top_k;
      const auto r = static_cast<std::size_t>(rank_of_expert_[static_cast<std::size_t>(ids_[s])]);
      h.remote_picks += static_cast<int>(r) != comm_.rank() ? 1 : 0;
      if (std::exchange(rank_seen_[r], token) == token) continue;
      ++ranks;
      if (std::exchange(node_seen_[static_cast<std::size_t>(nodes[r])], token) != token) ++visited_nodes;
    }
    counters_[DispatchCounters::TokenVisits] += static_cast<double>(h.tokens);
    counters_[DispatchCounters::Ranks] += static_cast<double>(ranks);
    counters_[DispatchCounters::Nodes] += static_cast<double>(visited_nodes);
    // The lists of picks and both passes' gates would be the same without deduplication.
    constexpr double kPickBytes = sizeof(std::int32_t) + 2 * sizeof(float), kCountBytes = 2 * sizeof(std::int64_t);
    counters_[DispatchCounters::BytesCopies] +=
        static_cast<double>(h.remote_picks) * kPickBytes + static_cast<double>(comm_.size() - 1) * kCountBytes;
  }
  void count_copies(const ExchangeHandle& h, std::int64_t width) {
    counters_[DispatchCounters::BytesCopies] +=
        static_cast<double>(h.remote_picks) * static_cast<double>(width) * sizeof(float);
  }

  // The pools were known before the picks: no rank is sent more rows than the documents that can reach it have tokens,
  // and those that cannot have tokens that are free of their pool.
  void check_reach(Context& ctx, const HopPlan& hop, const DocumentPools& pools) {
    if (pools.segments.null()) return;
    segments_.resize(static_cast<std::size_t>(pools.segments.numel()));
    ops::copy_to_host(ctx, segments_.data(), pools.segments);
    pool_.resize(pools.pool.null() ? 0 : static_cast<std::size_t>(pools.pool.numel()));
    if (!pool_.empty()) ops::copy_to_host(ctx, pool_.data(), pools.pool);
    free_tokens_.resize(pools.free_tokens.null() ? 0 : static_cast<std::size_t>(pools.free_tokens.numel()));
    if (!free_tokens_.empty()) ops::copy_to_host(ctx, free_tokens_.data(), pools.free_tokens);
    pool_reach(reach_, pool_, segments_, rank_of_expert_, comm_.nodes(), free_tokens_);
    counters_[DispatchCounters::Documents] += static_cast<double>(reach_.documents);
    counters_[DispatchCounters::DocumentRanks] += static_cast<double>(reach_.document_ranks);
    if (hops_.size() > 1) pool_reach(reach_, pool_, segments_, destinations_[0], comm_.nodes(), free_tokens_);
    for (std::size_t r = 0; r < hop.send_rows.size(); ++r)
      require(hop.send_rows[r] <= reach_.row_limit[r],
              "{} rows are to go to rank {}, but the pools let only {} tokens reach it: picks and pools contradict "
              "each other",
              hop.send_rows[r], r, reach_.row_limit[r]);
  }

  Communicator& comm_;
  const std::int64_t top_k_, experts_;
  ExchangeStaging& staging_;
  DispatchCounters& counters_;
  std::int64_t local_experts_ = 0, held_fan_ = 0;
  std::vector<std::int32_t> rank_of_expert_, local_expert_;
  std::vector<std::vector<std::int32_t>> destinations_;  ///< a hop each: where a row goes for an expert
  std::vector<ExchangeHop> hops_;
  TensorView arrived_gates_;
  // Host side of the plan, kept so that a step allocates nothing.
  std::vector<std::int32_t> ids_, segments_;
  std::vector<std::uint8_t> pool_, free_tokens_;
  std::vector<float> gates_;
  std::vector<std::int64_t> arrived_from_, rank_seen_, node_seen_;
  RowPicks rows_;
  ExpertOrder order_;
  PoolReach reach_;
};

}  // namespace

std::vector<std::int32_t> gateways(std::span<const std::int32_t> rank_of_expert, const std::vector<int>& nodes,
                                   int self) {
  std::vector<std::vector<std::int32_t>> members(nodes.size());
  std::size_t place = 0;  // of self in its node
  for (std::size_t r = 0; r < nodes.size(); ++r) {
    auto& node = members[static_cast<std::size_t>(nodes[r])];
    if (static_cast<int>(r) == self) place = node.size();
    node.push_back(static_cast<std::int32_t>(r));
  }
  std::vector<std::int32_t> gateway;
  for (const std::int32_t r : rank_of_expert) {
    const auto& node = members[static_cast<std::size_t>(nodes[static_cast<std::size_t>(r)])];
    gateway.push_back(node[place % node.size()]);
  }
  return gateway;
}

std::unique_ptr<TokenDispatcher> make_exchange_dispatcher(DispatchKind kind, Communicator& expert_group,
                                                          const ExpertPlacement& placement, std::int64_t layer,
                                                          std::int64_t routed_top_k, ExchangeStaging& staging,
                                                          DispatchCounters& counters) {
  return std::make_unique<ExchangeDispatcher>(kind, expert_group, placement, layer, routed_top_k, staging, counters);
}

}  // namespace emox
