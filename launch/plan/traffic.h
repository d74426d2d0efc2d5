// What tokens visit when experts are spread over ranks, in closed form (design section 6, formula 1): for plans, and
// beside what benchmarks count.
#pragma once

#include <cstdint>
#include <span>

#include "model/transformer/config.h"

namespace emox {

/// Distinct ranks that top_k uniform picks without repetition visit, when rank r has experts_of_rank[r] of the experts
/// to pick from: sum over r of 1 - C(P - a_r, k) / C(P, k), P the sum of all.
double expected_ranks(std::span<const std::int64_t> experts_of_rank, std::int64_t top_k);

/// Of a token in one MoE layer, one way; experts placed at random, so that pools change nothing on average.
struct ExpectedVisits {
  double ranks = 0, nodes = 0;  ///< the source's own included
  double rows_intra = 0;        ///< rows that a rank sends to others of its node
  double rows_inter = 0;        ///< to other nodes
  double remote_picks = 0;      ///< picks whose expert another rank has
};

/// Experts over `expert_parallel` ranks that fill nodes of `ranks_per_node` one after another. Two-level: a row goes
/// once to every node that it visits, to the rank at the sender's place there, and from that on to the others.
ExpectedVisits expected_visits(const ModelConfig& model, int expert_parallel, int ranks_per_node, bool two_level);

/// How far the picks that one rank receives in a micro-batch stray from their mean: standard deviation / mean, for
/// documents of `document_tokens` that keep to pools drawn at random, over the `tokens` of the whole expert group.
/// Without pools every token picks for itself.
double picks_spread(const ModelConfig& model, int expert_parallel, double tokens, double document_tokens);

}  // namespace emox
