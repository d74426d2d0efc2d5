#include "parallel/expert/placement_optimiser.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <numeric>

#include "parallel/expert/expert_swaps.h"
#include "runtime/core/error.h"
#include "runtime/rng/philox.h"

namespace emox {
namespace {

constexpr int kRounds = 24;
constexpr double kKicked = 0.2;  // of the documents

/// A division of some documents and some experts of every layer into parts.
struct Division {
  std::vector<std::int32_t> part_of_expert;    ///< [layers, experts]; -1: not of this problem
  std::vector<std::int32_t> part_of_document;  ///< as `documents` of the problem
  double excess = 0;                           ///< picks above the load limit, over all layers and parts
  double kept = 0;                             ///< picks on their document's part
};

/// Parts are groups of ranks; what a rank may hold is known for each layer.
struct DivisionProblem {
  const DocumentProfiles& profiles;
  std::vector<std::int64_t> documents;
  std::vector<std::int32_t> among;              ///< [layers, experts] 1: of this problem
  std::vector<double> load;                     ///< [layers, experts] picks of all documents
  std::vector<std::vector<std::int64_t>> room;  ///< [parts][layers] experts
  std::vector<double> ranks;                    ///< [parts]
  std::vector<std::vector<double>> limits;      ///< [parts][layers] picks
  std::size_t parts() const { return ranks.size(); }
};

/// Experts of every layer to parts, by what the documents of a part pick of them.
void place_experts(const DivisionProblem& p, Division& d) {
  const std::int64_t n = p.profiles.experts;
  const std::size_t parts = p.parts();
  std::vector<double> affinity(idx(p.profiles.size()) * parts, 0);
  for (std::size_t i = 0; i < p.documents.size(); ++i) {
    const std::int32_t* picks = p.profiles.of(p.documents[i]);
    const auto part = idx(d.part_of_document[i]);
    for (std::int64_t x = 0; x < p.profiles.size(); ++x) affinity[idx(x) * parts + part] += picks[x];
  }
  d.excess = 0;
  for (std::int64_t l = 0; l < p.profiles.layers; ++l) {
    ExpertSwaps layer;
    layer.parts = parts;
    std::vector<std::int64_t> which;
    for (std::int64_t e = 0; e < n; ++e)
      if (p.among[idx(l * n + e)] != 0) which.push_back(e);
    for (const std::int64_t e : which) {
      const double* a = &affinity[idx(l * n + e) * parts];
      layer.affinity.insert(layer.affinity.end(), a, a + parts);
      layer.load.push_back(p.load[idx(l * n + e)]);
    }
    for (std::size_t q = 0; q < parts; ++q)
      layer.room.push_back(p.room[q][idx(l)]), layer.limit.push_back(p.limits[q][idx(l)]);
    layer.place();
    d.excess += layer.excess();
    for (std::size_t i = 0; i < which.size(); ++i) d.part_of_expert[idx(l * n + which[i])] = layer.part[i];
  }
}

/// Picks of every document on every part: [documents, parts].
std::vector<double> scores_of(const DivisionProblem& p, const Division& d) {
  std::vector<double> scores(p.documents.size() * p.parts(), 0);
  for (std::size_t i = 0; i < p.documents.size(); ++i) {
    const std::int32_t* picks = p.profiles.of(p.documents[i]);
    for (std::int64_t x = 0; x < p.profiles.size(); ++x)
      if (picks[x] != 0 && d.part_of_expert[idx(x)] >= 0)
        scores[i * p.parts() + idx(d.part_of_expert[idx(x)])] += picks[x];
  }
  return scores;
}

/// As assign_homes, for parts of different sizes.
std::vector<std::int32_t> assign(std::span<const double> scores, std::span<const std::int64_t> tokens,
                                 std::span<const double> sizes, double slack) {
  const std::size_t parts = sizes.size(), n = tokens.size();
  const auto all = static_cast<double>(std::accumulate(tokens.begin(), tokens.end(), std::int64_t{0}));
  const double whole = std::accumulate(sizes.begin(), sizes.end(), 0.0);
  const std::vector<double> lead = leads(scores, parts);
  std::vector<double> filled(parts, 0);
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return lead[a] > lead[b]; });
  std::vector<std::int32_t> home(n, 0);
  for (const std::size_t i : order) {
    std::size_t chosen = parts, emptiest = 0;
    for (std::size_t q = 0; q < parts; ++q) {
      if (filled[q] / sizes[q] < filled[emptiest] / sizes[emptiest]) emptiest = q;
      if (filled[q] + static_cast<double>(tokens[i]) > all / whole * sizes[q] * (1 + slack)) continue;
      if (chosen == parts || scores[i * parts + q] > scores[i * parts + chosen]) chosen = q;
    }
    if (chosen == parts) chosen = emptiest;  // long documents fit nowhere exactly
    filled[chosen] += static_cast<double>(tokens[i]);
    home[i] = static_cast<std::int32_t>(chosen);
  }
  return home;
}

/// Documents that are far from each other, one a part, and every other one to the nearest.
std::vector<std::int32_t> first_guess(const DivisionProblem& p, const Philox& philox, std::uint32_t start,
                                      std::span<const std::int64_t> tokens) {
  const std::size_t n = p.documents.size(), parts = p.parts();
  const auto likeness = [&](std::int64_t a, std::int64_t b) {
    const std::int32_t *x = p.profiles.of(a), *y = p.profiles.of(b);
    double xy = 0, xx = 0, yy = 0;
    for (std::int64_t i = 0; i < p.profiles.size(); ++i)
      xy += static_cast<double>(x[i]) * y[i], xx += static_cast<double>(x[i]) * x[i],
          yy += static_cast<double>(y[i]) * y[i];
    return xx > 0 && yy > 0 ? xy / std::sqrt(xx * yy) : 0;
  };
  std::vector<double> scores(n * parts), nearest(n, -1);
  auto seed = idx(philox.uniform_int(0, static_cast<std::int64_t>(n) - 1, {start, 0, 0, 0}));
  for (std::size_t q = 0; q < parts; ++q) {
    for (std::size_t i = 0; i < n; ++i) {
      const double s = likeness(p.documents[i], p.documents[seed]);
      scores[i * parts + q] = s;
      nearest[i] = std::max(nearest[i], s);
    }
    seed = idx(std::min_element(nearest.begin(), nearest.end()) - nearest.begin());
  }
  return assign(scores, tokens, p.ranks, 0.02);
}

bool better(const Division& a, const Division& b) {
  constexpr double kSame = 1e-9;
  if (std::abs(a.excess - b.excess) > kSame) return a.excess < b.excess;
  return a.kept > b.kept;
}

/// `guess`: a first part of every document; empty: none.
Division divide(const DivisionProblem& p, const PlacementRequest& request, std::uint32_t level,
                const std::vector<std::int32_t>& guess = {}) {
  std::vector<std::int64_t> tokens;
  for (const std::int64_t d : p.documents) tokens.push_back(p.profiles.tokens[idx(d)]);
  const Philox philox(request.seed, RngPurpose::Placement);
  Division best;
  best.excess = std::numeric_limits<double>::infinity();
  const auto descend = [&](Division d) {
    double before = -1;
    for (int round = 0; round < kRounds; ++round) {
      place_experts(p, d);
      const std::vector<double> scores = scores_of(p, d);
      d.part_of_document = assign(scores, tokens, p.ranks, 0.02);
      d.kept = 0;
      for (std::size_t i = 0; i < tokens.size(); ++i) d.kept += scores[i * p.parts() + idx(d.part_of_document[i])];
      if (better(d, best)) best = d;
      if (d.kept <= before * (1 + 1e-5)) break;
      before = d.kept;
    }
  };
  Division d;
  d.part_of_expert.assign(idx(p.profiles.size()), -1);
  if (p.documents.empty()) {
    descend(d);
    return best;
  }
  if (!guess.empty()) d.part_of_document = guess, descend(d);
  for (int start = 0; start < request.starts; ++start) {
    d.part_of_document = first_guess(p, philox, level * 64 + static_cast<std::uint32_t>(start), tokens);
    descend(d);
  }
  // From the best, again and again, with some documents anywhere: out of a place that only looks the best from within.
  for (int kick = 0; p.parts() > 1 && kick < request.kicks; ++kick) {
    d = best;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const PhiloxCounter at{level, static_cast<std::uint32_t>(kick), static_cast<std::uint32_t>(i), 1};
      if (philox.uniform(at) < kKicked)
        d.part_of_document[i] = static_cast<std::int32_t>(
            philox.uniform_int(0, static_cast<std::int64_t>(p.parts()) - 1, {at[0], at[1], at[2], 2}));
    }
    descend(d);
  }
  return best;
}

/// Experts of a rank in a layer: the ranks that have one more are others in every layer.
std::int64_t experts_on(std::int64_t experts, int ranks, std::int64_t layer, int rank) {
  const std::int64_t more = experts % ranks;
  return experts / ranks + ((rank + layer * more) % ranks < more ? 1 : 0);
}

DivisionProblem problem_of(const DocumentProfiles& profiles, const PlacementRequest& request,
                           const std::vector<std::pair<int, int>>& parts, double limit) {
  DivisionProblem p{profiles, {}, {}, std::vector<double>(idx(profiles.size()), 0), {}, {}, {}};
  for (std::int64_t d = 0; d < profiles.documents(); ++d)
    for (std::int64_t x = 0; x < profiles.size(); ++x) p.load[idx(x)] += profiles.of(d)[x];
  std::vector<double> load(idx(profiles.layers), 0);
  for (std::int64_t x = 0; x < profiles.size(); ++x) load[idx(x / profiles.experts)] += p.load[idx(x)];
  for (const auto& [first, last] : parts) {
    std::vector<std::int64_t> room;
    std::vector<double> limits;
    for (std::int64_t l = 0; l < profiles.layers; ++l) {
      std::int64_t experts = 0;
      for (int r = first; r < last; ++r) experts += experts_on(profiles.experts, request.ranks, l, r);
      room.push_back(experts);
      limits.push_back(load[idx(l)] * limit * (last - first) / request.ranks);
    }
    p.room.push_back(room), p.limits.push_back(limits), p.ranks.push_back(last - first);
  }
  return p;
}

/// Parts whose documents pick alike come into one group: [parts] -> group, groups of the given sizes.
std::vector<std::int32_t> group_parts(const DivisionProblem& p, const Division& d,
                                      const std::vector<std::pair<int, int>>& groups) {
  const std::size_t parts = p.parts();
  std::vector<double> centre(parts * idx(p.profiles.size()), 0), alike(parts * parts, 0);
  for (std::size_t i = 0; i < p.documents.size(); ++i)
    for (std::int64_t x = 0; x < p.profiles.size(); ++x)
      centre[idx(d.part_of_document[i]) * idx(p.profiles.size()) + idx(x)] += p.profiles.of(p.documents[i])[x];
  for (std::size_t a = 0; a < parts; ++a)
    for (std::size_t b = 0; b < parts; ++b)
      for (std::int64_t x = 0; a != b && x < p.profiles.size(); ++x)
        alike[a * parts + b] +=
            centre[a * idx(p.profiles.size()) + idx(x)] * centre[b * idx(p.profiles.size()) + idx(x)];
  std::vector<std::int32_t> group(parts, -1);
  for (std::size_t g = 0; g < groups.size(); ++g)
    for (int member = groups[g].first; member < groups[g].second; ++member) {
      std::size_t next = parts;
      double most = -1;
      for (std::size_t a = 0; a < parts; ++a) {
        if (group[a] >= 0) continue;
        double sum = 0;
        for (std::size_t b = 0; b < parts; ++b)
          if (group[b] == static_cast<std::int32_t>(g)) sum += alike[a * parts + b];
        if (sum > most) most = sum, next = a;
      }
      group[next] = static_cast<std::int32_t>(g);
    }
  // Exchanges of two parts, as long as one brings likeness into the groups.
  const auto to_group = [&](std::size_t a, std::int32_t g, std::size_t without) {
    double sum = 0;
    for (std::size_t b = 0; b < parts; ++b)
      if (b != without && group[b] == g) sum += alike[a * parts + b];
    return sum;
  };
  for (bool better = true; better;) {
    better = false;
    for (std::size_t a = 0; a < parts; ++a)
      for (std::size_t b = 0; b < a; ++b) {
        if (group[a] == group[b]) continue;
        const double now = to_group(a, group[a], a) + to_group(b, group[b], b);
        const double then = to_group(a, group[b], b) + to_group(b, group[a], a);
        if (then > now * (1 + 1e-12) + 1e-9) std::swap(group[a], group[b]), better = true;
      }
  }
  return group;
}

}  // namespace

double load_limit_of(const std::string& text) {
  double value = 0;
  const char* const end = text.data() + text.size();
  const auto [last, error] = std::from_chars(text.data(), end, value);
  require<UsageError>(error == std::errc() && last == end && value >= 1,
                      "--load-limit = {}: picks of the fullest rank over the mean, a number from 1 on", text);
  return value;
}

std::vector<std::int32_t> assign_homes(std::span<const double> scores, std::span<const std::int64_t> tokens, int ranks,
                                       double slack) {
  return assign(scores, tokens, std::vector<double>(idx(ranks), 1.0), slack);
}

ChosenPlacement choose_placement(const DocumentProfiles& profiles, const PlacementRequest& request) {
  const std::int64_t layers = profiles.layers, n = profiles.experts;
  const int ranks = request.ranks;
  ChosenPlacement chosen{ExpertPlacement::block(layers, n, ranks),
                         std::vector<std::int32_t>(idx(profiles.documents()), 0)};
  if (profiles.documents() == 0) return chosen;
  std::vector<std::vector<std::int32_t>> table(idx(layers), std::vector<std::int32_t>(idx(n), 0));
  std::vector<std::pair<int, int>> nodes;
  for (int r = 0; r < ranks; r += request.ranks_per_node)
    nodes.emplace_back(r, std::min(ranks, r + request.ranks_per_node));
  DivisionProblem whole =
      problem_of(profiles, request, nodes, 1 + (request.load_limit - 1) / 2);  // room for the ranks to differ
  whole.documents.resize(idx(profiles.documents()));
  std::iota(whole.documents.begin(), whole.documents.end(), std::int64_t{0});
  whole.among.assign(idx(profiles.size()), 1);
  // What is alike is found best in as many parts as there are ranks; nodes begin with those that are alike.
  std::vector<std::int32_t> guess;
  if (nodes.size() > 1) {
    std::vector<std::pair<int, int>> single;
    for (int r = 0; r < ranks; ++r) single.emplace_back(r, r + 1);
    DivisionProblem flat = problem_of(profiles, request, single, request.load_limit);
    flat.documents = whole.documents, flat.among = whole.among;
    const Division parts = divide(flat, request, 0xFFFF);
    const std::vector<std::int32_t> group = group_parts(flat, parts, nodes);
    for (const std::int32_t part : parts.part_of_document) guess.push_back(group[idx(part)]);
  }
  const Division by_node = divide(whole, request, 0, guess);
  for (std::size_t node = 0; node < nodes.size(); ++node) {
    const auto [first, last] = nodes[node];
    std::vector<std::pair<int, int>> own;
    for (int r = first; r < last; ++r) own.emplace_back(r, r + 1);
    DivisionProblem inside = problem_of(profiles, request, own, request.load_limit);
    inside.among.assign(idx(profiles.size()), 0);
    for (std::int64_t x = 0; x < profiles.size(); ++x)
      inside.among[idx(x)] = by_node.part_of_expert[idx(x)] == static_cast<std::int32_t>(node) ? 1 : 0;
    for (std::size_t i = 0; i < whole.documents.size(); ++i)
      if (by_node.part_of_document[i] == static_cast<std::int32_t>(node))
        inside.documents.push_back(whole.documents[i]);
    const Division by_rank = divide(inside, request, static_cast<std::uint32_t>(node) + 1);
    for (std::int64_t x = 0; x < profiles.size(); ++x)
      if (by_rank.part_of_expert[idx(x)] >= 0) table[idx(x / n)][idx(x % n)] = first + by_rank.part_of_expert[idx(x)];
    for (std::size_t i = 0; i < inside.documents.size(); ++i)
      chosen.homes[idx(inside.documents[i])] = first + by_rank.part_of_document[i];
  }
  chosen.placement = ExpertPlacement::from_table(table, ranks);
  double all = 0, home = 0;
  std::vector<double> load(idx(layers * ranks), 0);
  for (std::int64_t d = 0; d < profiles.documents(); ++d)
    for (std::int64_t x = 0; x < profiles.size(); ++x) {
      const auto picks = static_cast<double>(profiles.of(d)[x]);
      const std::int32_t rank = table[idx(x / n)][idx(x % n)];
      all += picks, home += rank == chosen.homes[idx(d)] ? picks : 0;
      load[idx(x / n * ranks + rank)] += picks;
    }
  chosen.home_share = all > 0 ? home / all : 0;
  for (std::int64_t l = 0; l < layers; ++l) {
    const auto of_layer = std::span(load).subspan(idx(l * ranks), idx(ranks));
    const double sum = std::accumulate(of_layer.begin(), of_layer.end(), 0.0);
    if (sum > 0)
      chosen.load_max_over_mean =
          std::max(chosen.load_max_over_mean, *std::max_element(of_layer.begin(), of_layer.end()) * ranks / sum);
  }
  return chosen;
}

}  // namespace emox
