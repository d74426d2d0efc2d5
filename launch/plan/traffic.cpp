#include "launch/plan/traffic.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "runtime/core/idx.h"

namespace emox {
namespace {

/// 1 - C(P - a, k) / C(P, k): a chance to meet at least one of `a`.
double chance(std::int64_t of_rank, std::int64_t all, std::int64_t k) {
  if (all - of_rank < k) return of_rank > 0 ? 1.0 : 0.0;
  const auto log_choose = [](std::int64_t n, std::int64_t m) {
    return std::lgamma(static_cast<double>(n + 1)) - std::lgamma(static_cast<double>(m + 1)) -
           std::lgamma(static_cast<double>(n - m + 1));
  };
  return 1 - std::exp(log_choose(all - of_rank, k) - log_choose(all, k));
}

}  // namespace

double expected_ranks(std::span<const std::int64_t> experts_of_rank, std::int64_t k) {
  std::int64_t pool = 0;
  for (const std::int64_t a : experts_of_rank) pool += a;
  double sum = 0;
  for (const std::int64_t a : experts_of_rank) sum += chance(a, pool, k);
  return sum;
}

ExpectedVisits expected_visits(const ModelConfig& model, int expert_parallel, int ranks_per_node, bool two_level) {
  ExpectedVisits v;
  if (!model.is_moe() || expert_parallel < 1) return v;
  const std::int64_t n = model.routed_experts(), k = model.routed_top_k();
  // Counts differ by one at most; which ranks have one more makes no difference to a sum over all senders.
  std::vector<std::int64_t> of_rank, of_node;
  for (int r = 0; r < expert_parallel; ++r) {
    of_rank.push_back(n / expert_parallel + (r < n % expert_parallel ? 1 : 0));
    if (r % ranks_per_node == 0) of_node.push_back(0);
    of_node.back() += of_rank.back();
  }
  v.ranks = expected_ranks(of_rank, k);
  v.nodes = expected_ranks(of_node, k);
  const double ranks = expert_parallel;
  double other_ranks_here = 0, other_nodes = 0, remote = 0;
  for (int sender = 0; sender < expert_parallel; ++sender) {
    const int node = sender / ranks_per_node;
    for (int r = 0; r < expert_parallel; ++r)
      if (r != sender && r / ranks_per_node == node) other_ranks_here += chance(of_rank[idx(r)], n, k) / ranks;
    for (std::size_t m = 0; m < of_node.size(); ++m)
      if (static_cast<int>(m) != node) other_nodes += chance(of_node[m], n, k) / ranks;
    remote += static_cast<double>(k) * (1 - static_cast<double>(of_rank[idx(sender)]) / static_cast<double>(n)) / ranks;
  }
  v.remote_picks = remote;
  const double own = v.ranks / ranks, ranks_elsewhere = v.ranks - own - other_ranks_here;
  if (!two_level) {
    v.rows_intra = other_ranks_here;
    v.rows_inter = ranks_elsewhere;
    return v;
  }
  // The rank that passes a row on keeps it when it is visited itself.
  const double per_node = std::min(ranks_per_node, expert_parallel);
  v.rows_inter = other_nodes;
  v.rows_intra = other_ranks_here + ranks_elsewhere * (per_node - 1) / per_node;
  return v;
}

double picks_spread(const ModelConfig& model, int expert_parallel, double tokens, double document_tokens) {
  if (!model.is_moe() || expert_parallel < 2 || tokens <= 0) return 0;
  const auto n = static_cast<double>(model.routed_experts());
  const double share = 1.0 / expert_parallel, odds = (1 - share) / share;
  const auto of_pool = [&](double pool) { return odds / pool * (n - pool) / std::max(1.0, n - 1); };
  const auto k = static_cast<double>(model.routed_top_k());
  const double of_token = of_pool(k);  // one token's picks are a pool of k
  double of_document = 0;
  if (model.pool == PoolMode::Fixed)
    of_document = of_pool(static_cast<double>(std::min(model.pool_size, model.routed_experts())));
  if (model.pool == PoolMode::Uniform || model.pool == PoolMode::Label) {
    std::int64_t sizes = 0;
    for (std::int64_t p = model.pool_min; p <= model.pool_max; ++p, ++sizes)
      of_document += of_pool(static_cast<double>(std::clamp<std::int64_t>(p, 1, model.routed_experts())));
    of_document /= static_cast<double>(std::max<std::int64_t>(sizes, 1));
  }
  const double documents = std::max(1.0, tokens / document_tokens);
  return std::sqrt(of_document / documents + of_token / tokens);
}

}  // namespace emox
