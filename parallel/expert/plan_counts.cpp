#include "parallel/expert/plan_counts.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "parallel/expert/exposed.h"
#include "parallel/expert/reach.h"
#include "runtime/core/idx.h"
#include "runtime/ops/basic.h"
#include "runtime/ops/dispatch_plan.h"

namespace emox {
namespace {

std::int64_t all_of(const std::vector<std::int64_t>& v) { return std::accumulate(v.begin(), v.end(), std::int64_t{0}); }

}  // namespace

void PlanCounts::Exchange::tell(std::size_t rank, std::span<const std::int64_t> entries) {
  for (const std::int64_t e : entries) index.push_back(static_cast<std::int32_t>(e));
  first.push_back(static_cast<std::int32_t>(index.size()));
  ++lengths[rank];
  ++out;
}

PlanCounts::PlanCounts(Communicator& comm, std::span<const std::int32_t> rank_of_expert, bool by_node)
    : comm_(comm), by_node_(by_node), gateway_(emox::gateways(rank_of_expert, comm.nodes(), comm.rank())) {
  const std::vector<int>& nodes = comm.nodes();
  nodes_ = *std::max_element(nodes.begin(), nodes.end()) + 1;
  gateway_of_node_.assign(idx(nodes_), -1);
  for (std::size_t e = 0; e < rank_of_expert.size(); ++e)
    gateway_of_node_[idx(nodes[idx(rank_of_expert[e])])] = gateway_[e];
  book_ = counted();
  const auto add = [&](Exchange x) {
    x.in = all_of(x.expected);
    x.in_begin = book_;
    book_ += x.in;
    exchanges_.push_back(std::move(x));
  };
  if (by_node) {
    add(to_gateways(rank_of_expert));
    add(inside(rank_of_expert, exchanges_.front()));
  } else {
    add(flat(rank_of_expert));
  }
  hops_.resize(exchanges_.size());
}

// Each rank that can be reached is told its rows and picks, whether it is or not.
PlanCounts::Exchange PlanCounts::flat(std::span<const std::int32_t> rank_of) const {
  const Reach reach = expert_reach(rank_of, comm_.nodes(), comm_.rank(), false);
  Exchange x{std::vector<std::int64_t>(reach.to.size(), 0), reach.from};
  for (std::int64_t& n : x.expected) n *= 2;
  for (std::size_t r = 0; r < reach.to.size(); ++r)
    for (std::size_t c = 0; c < 2 && reach.to[r] != 0; ++c) x.tell(r, {{static_cast<std::int64_t>(2 * r + c)}});
  return x;
}

// A gateway is told how many rows it gets, and how many of them go to each rank of its node.
PlanCounts::Exchange PlanCounts::to_gateways(std::span<const std::int32_t> rank_of) const {
  const std::vector<int>& nodes = comm_.nodes();
  const Reach reach = gateway_reach(rank_of, nodes, comm_.rank());
  const std::int64_t by_node = 2 * comm_.size();  // where those counts begin
  Exchange x{std::vector<std::int64_t>(nodes.size(), 0), reach.from};
  for (std::int64_t& n : x.expected) n *= 2 * (1 + comm_.node_size());
  for (std::size_t g = 0; g < nodes.size(); ++g) {
    if (reach.to[g] == 0) continue;
    for (std::int64_t c = 0; c < 2; ++c) x.tell(g, {{by_node + 2 * nodes[g] + c}});
    for (std::size_t r = 0; r < nodes.size(); ++r)
      for (std::size_t c = 0; c < 2 && nodes[r] == nodes[g]; ++c) x.tell(g, {{static_cast<std::int64_t>(2 * r + c)}});
  }
  return x;
}

// A row that goes to some rank of a node goes there by way of the gateway: what the gateway passes on to each rank is
// the sum of what its sources have for that rank, its own included.
PlanCounts::Exchange PlanCounts::inside(std::span<const std::int32_t> rank_of, const Exchange& outside) const {
  const std::vector<int>& nodes = comm_.nodes();
  const int here = nodes[idx(comm_.rank())];
  const Reach reach = expert_reach(rank_of, nodes, comm_.rank(), true);
  Exchange x{std::vector<std::int64_t>(nodes.size(), 0), reach.from};
  for (std::int64_t& n : x.expected) n *= 2;
  std::int64_t place = 0;  // of the rank in this node
  for (std::size_t r = 0; r < nodes.size(); ++r) {
    if (nodes[r] != here) continue;
    for (std::int64_t c = 0; c < 2 && reach.to[r] != 0; ++c) {
      std::vector<std::int64_t> entries{static_cast<std::int64_t>(2 * r) + c};
      std::int64_t at = outside.in_begin + 2 + 2 * place + c;
      for (const std::int64_t n : outside.expected) {
        if (n != 0) entries.push_back(at);
        at += n;
      }
      x.tell(r, entries);
    }
    ++place;
  }
  return x;
}

PlanCounts::Memory PlanCounts::reserve(Arena& arena) const {
  Memory m;
  m.book = arena.allocate(DType::I64, {book_});
  std::int64_t most = 0;
  for (const Exchange& x : exchanges_) most = std::max(most, x.out);
  m.out = arena.allocate(DType::I64, {most});
  for (std::size_t i = 0; i < exchanges_.size(); ++i)
    m.tables[i] = {arena.i32({static_cast<std::int64_t>(exchanges_[i].first.size())}),
                   arena.i32({static_cast<std::int64_t>(exchanges_[i].index.size())})};
  m.counted = PlanNumbers<TensorView>::of(comm_.size(), nodes_, [view = m.book, at = std::int64_t{0}](auto n) mutable {
    at += n;
    return view.rows(at - n, at);
  });
  return m;
}

void PlanCounts::start(Context& ctx, Memory& m, PinnedMemory& read, DispatchCounters& counters) {
  for (std::size_t i = 0; i < exchanges_.size() && !m.tables_are_there; ++i) {
    ops::copy_from_host(ctx, m.tables[i].first, exchanges_[i].first.data());
    ops::copy_from_host(ctx, m.tables[i].index, exchanges_[i].index.data());
  }
  m.tables_are_there = true;
  for (std::size_t i = 0; i < exchanges_.size(); ++i) {
    const Exchange& x = exchanges_[i];
    const TensorView out = m.out.rows(0, x.out);
    ops::sum_counts(ctx, out, m.book, m.tables[i].first, m.tables[i].index);
    const Exposed exposed(ctx, counters);
    comm_.all_to_all_v(m.book.rows(x.in_begin, x.in_begin + x.in), x.expected, out, x.lengths);
    counters.count_sent(comm_.nodes(), comm_.rank(), x.lengths, sizeof(std::int64_t));
  }
  if (ctx.queue == nullptr) return;
  read.ensure(m.book.bytes());
  ctx.queue->copy_to_pinned(read.data(), m.book.raw(), m.book.bytes());
  m.read = ctx.queue->record();
}

void PlanCounts::finish(Context& ctx, Memory& m, const PinnedMemory& read) {
  host_book_.resize(idx(book_));
  if (ctx.queue == nullptr) {
    ops::copy_to_host(ctx, host_book_.data(), m.book);
  } else {
    comm_.wait_for(*m.read);
    std::memcpy(host_book_.data(), read.data(), m.book.bytes());
  }
  look();
}

void PlanCounts::recall(const std::vector<std::int64_t>& book) {
  host_book_ = book;
  look();
}

void PlanCounts::look() {
  numbers_ = PlanNumbers<std::span<const std::int64_t>>::of(
      comm_.size(), nodes_, [rest = std::span<const std::int64_t>(host_book_)](auto n) mutable {
        const auto part = rest.first(idx(n));
        rest = rest.subspan(part.size());
        return part;
      });
  if (by_node_)
    read_two_level();
  else
    read_flat();
}

/// [ranks, 2] from an exchange that tells two numbers a rank.
RankCounts PlanCounts::told(const Exchange& x) const {
  RankCounts counts(2 * x.expected.size(), 0);
  auto at = host_book_.begin() + x.in_begin;
  for (std::size_t r = 0; r < x.expected.size(); ++r)
    if (x.expected[r] != 0) counts[2 * r] = *at++, counts[2 * r + 1] = *at++;
  return counts;
}

void PlanCounts::read_flat() {
  hops_[0].sends.assign(numbers_.by_rank.begin(), numbers_.by_rank.end());
  hops_[0].receives = told(exchanges_[0]);
}

void PlanCounts::read_two_level() {
  const std::vector<int>& nodes = comm_.nodes();
  const auto ranks = nodes.size();
  const int here = nodes[idx(comm_.rank())];
  Hop &out = hops_[0], &onward = hops_[1];
  out.sends.assign(2 * ranks, 0);
  for (std::size_t n = 0; n < gateway_of_node_.size(); ++n) {
    if (gateway_of_node_[n] < 0) continue;
    const auto g = idx(gateway_of_node_[n]);
    out.sends[2 * g] = numbers_.by_node[2 * n], out.sends[2 * g + 1] = numbers_.by_node[2 * n + 1];
  }
  out.receives.assign(2 * ranks, 0);
  onward.sends.assign(2 * ranks, 0);
  const auto pass_on = [&](const auto* counts) {  // [node's ranks, 2] of one source
    for (std::size_t r = 0; r < ranks; ++r)
      if (nodes[r] == here) onward.sends[2 * r] += *counts++, onward.sends[2 * r + 1] += *counts++;
  };
  std::vector<std::int64_t> own;
  for (std::size_t r = 0; r < ranks; ++r)
    if (nodes[r] == here) own.insert(own.end(), {numbers_.by_rank[2 * r], numbers_.by_rank[2 * r + 1]});
  pass_on(own.data());
  const std::int64_t* at = host_book_.data() + exchanges_[0].in_begin;
  for (std::size_t s = 0; s < ranks; ++s) {
    const std::int64_t n = exchanges_[0].expected[s];
    if (n == 0) continue;
    out.receives[2 * s] = at[0], out.receives[2 * s + 1] = at[1];
    pass_on(at + 2);
    at += n;
  }
  onward.receives = told(exchanges_[1]);
}

}  // namespace emox
