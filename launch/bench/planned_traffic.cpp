#include <algorithm>
#include <chrono>
#include <utility>

#include "launch/bench/dispatch_bench.h"
#include "parallel/expert/planned_exchange.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

using Clock = std::chrono::steady_clock;

/// Seconds of the plans alone, without the making of tokens and the moving of lists.
struct Stopwatch {
  template <typename Work>
  void run(Work&& work) {
    const auto start = Clock::now();
    work();
    seconds += std::chrono::duration<double>(Clock::now() - start).count();
  }
  double seconds = 0;
};

struct Counts {
  std::int64_t ranks = 0, nodes = 0, rows_sent = 0, node_rows = 0, remote_picks = 0;
};

// Counts of one rank: `rank_of` and `node` of the expert group.
void count_visits(Counts& c, const PlannedTokens& t, std::int64_t k, std::span<const std::int32_t> rank_of,
                  const std::vector<int>& node, int self) {
  std::vector<std::int64_t> rank_seen(node.size(), -1), node_seen(node.size(), -1);
  for (std::size_t s = 0; s < t.ids.size(); ++s) {
    const auto token = static_cast<std::int64_t>(s) / k;
    const auto r = idx(rank_of[idx(t.ids[s])]);
    const bool other_node = node[r] != node[idx(self)];
    if (static_cast<int>(r) != self) ++c.remote_picks;
    if (std::exchange(rank_seen[r], token) == token) continue;
    ++c.ranks;
    if (static_cast<int>(r) != self) ++c.rows_sent;
    if (std::exchange(node_seen[idx(node[r])], token) == token) continue;
    ++c.nodes;
    if (other_node) ++c.node_rows;
  }
}

}  // namespace

DispatchTraffic plan_traffic(const PlannedMesh& mesh, std::span<const std::int32_t> rank_of,
                             std::span<const PlannedTokens> tokens, std::int64_t k, std::int64_t width) {
  const int ranks = mesh.expert_parallel;
  const auto n = idx(ranks);
  std::vector<int> node;
  for (int r = 0; r < ranks; ++r) node.push_back(r / mesh.ranks_per_node);
  std::vector<std::vector<std::int32_t>> local(n, std::vector<std::int32_t>(rank_of.size(), -1));
  std::vector<std::int64_t> owned(n, 0);
  for (std::size_t e = 0; e < rank_of.size(); ++e) {
    const auto r = idx(rank_of[e]);
    local[r][e] = static_cast<std::int32_t>(owned[r]++);
  }
  Counts counts;
  Stopwatch watch;
  DispatchTraffic t;
  std::int64_t expert_rows = 0, fullest = 0, document_ranks = 0;
  std::vector<SendPlan> plans(n);
  std::vector<std::vector<std::int32_t>> packed_of(n);
  RowPicks rows, arrived;
  ExpertOrder order;
  PoolReach reach;
  std::vector<std::int32_t> packed;
  for (int replica = 0; replica < mesh.data_parallel; ++replica) {
    for (std::size_t r = 0; r < n; ++r) {
      const PlannedTokens& own = tokens[idx(replica) * n + r];
      const auto self = static_cast<int>(r);
      watch.run([&] {
        picks_of_tokens(rows, own.ids, k);
        plan_send(plans[r], rows, rank_of, self, ranks, std::min<std::int64_t>(k, ranks));
        pool_reach(reach, own.pools, own.segments, rank_of, ranks);
      });
      packed_of[r] = plans[r].packed;
      document_ranks += reach.reached;
      t.documents += static_cast<std::int64_t>(own.segments.size()) - 1;
      t.tokens += rows.rows();
      count_visits(counts, own, k, rank_of, node, self);
    }
    for (std::size_t r = 0; r < n; ++r) {
      arriving<std::int32_t>(packed, plans, packed_of, static_cast<int>(r),
                             [](const SendPlan& p) -> const std::vector<std::int64_t>& { return p.picks; });
      const std::vector<std::int64_t> from = arriving_rows(plans, static_cast<int>(r));
      std::int64_t total = 0;
      for (const std::int64_t f : from) total += f;
      watch.run([&] {
        unpack_picks(arrived, packed, total);
        plan_experts(order, arrived, from, {static_cast<int>(r), local[r], owned[r], std::min(k, owned[r])});
      });
      expert_rows += arrived.picks();
      fullest = std::max(fullest, arrived.picks());
    }
  }
  const auto all = static_cast<double>(t.tokens);
  t.ranks_per_token = static_cast<double>(counts.ranks) / all;
  t.nodes_per_token = static_cast<double>(counts.nodes) / all;
  t.rows_sent_per_token = static_cast<double>(counts.rows_sent) / all;
  t.node_rows_sent_per_token = static_cast<double>(counts.node_rows) / all;
  t.ranks_per_document = static_cast<double>(document_ranks) / static_cast<double>(t.documents);
  t.rows_max_over_mean = static_cast<double>(fullest) * ranks * mesh.data_parallel / static_cast<double>(expert_rows);
  // A row travels four times (forth and back, both passes); a pick's expert number once, its gate and that one's
  // gradient.
  t.bytes_per_token = 4.0 * t.rows_sent_per_token * static_cast<double>(width) * 4 +
                      12.0 * static_cast<double>(counts.remote_picks) / all;
  t.plan_ns_per_row = watch.seconds * 1e9 / static_cast<double>(expert_rows);
  return t;
}

}  // namespace emox
