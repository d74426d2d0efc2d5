#include "model/modularity/measures.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <utility>

#include "model/modularity/contingency.h"
#include "model/modularity/student.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/rng/philox.h"

namespace emox {
namespace {

// A shuffle of many picks hardly varies; one of a few hundred labels does.
constexpr std::uint32_t kPickShuffles = 4, kLabelShuffles = 200;

enum class Shuffle : std::uint32_t { Deal = 0, Labels = 1, Tokens = 2 };

/// Fisher-Yates, a function of the key, which kind of shuffle it is, its number, and the list's (a document's).
template <typename T>
void shuffle(std::vector<T>& values, const Philox& philox, Shuffle kind, std::uint32_t number, std::uint32_t list) {
  const std::uint32_t which = (static_cast<std::uint32_t>(kind) << 24) | number;
  for (std::size_t i = values.size(); i > 1; --i) {
    const PhiloxCounter at{static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(i >> 32), which, list};
    std::swap(values[i - 1], values[idx(philox.uniform_int(0, static_cast<std::int64_t>(i) - 1, at))]);
  }
}

void check(std::span<const DocumentPicks> documents, std::int64_t experts) {
  require<ShapeError>(!documents.empty(), "modularity: there are no documents");
  for (const DocumentPicks& d : documents) {
    require<ShapeError>(!d.picks.empty() && d.domain >= 0, "modularity: a document of domain {} with {} picks",
                        d.domain, d.picks.size());
    for (const PickCount& p : d.picks)
      require<ShapeError>(p.expert >= 0 && p.expert < experts && p.token >= 0 && p.count > 0,
                          "modularity: {} picks of expert {} of {} by token {}", p.count, p.expert, experts, p.token);
  }
}

/// How often a document picked each expert.
std::vector<std::int64_t> by_expert(const DocumentPicks& document, std::int64_t experts) {
  std::vector<std::int64_t> counts(idx(experts), 0);
  for (const PickCount& p : document.picks) counts[idx(p.expert)] += p.count;
  return counts;
}

double top_share(std::vector<std::int64_t> counts, std::int64_t top) {
  std::sort(counts.begin(), counts.end(), std::greater<>());
  const auto end = counts.begin() + std::min<std::ptrdiff_t>(top, static_cast<std::ptrdiff_t>(counts.size()));
  return static_cast<double>(std::accumulate(counts.begin(), end, std::int64_t{0})) /
         static_cast<double>(std::accumulate(counts.begin(), counts.end(), std::int64_t{0}));
}

using Counts = std::vector<std::vector<std::int64_t>>;  // [documents][experts]

Concentration concentration_at(double share, const Counts& counts, const std::vector<Counts>& dealt) {
  const auto experts = static_cast<double>(counts[0].size()), documents = static_cast<double>(counts.size());
  Concentration c;
  c.share = share, c.top = std::max<std::int64_t>(1, std::llround(share * experts));
  std::vector<double> shares;
  for (const auto& document : counts) shares.push_back(top_share(document, c.top));
  c.value.value = std::accumulate(shares.begin(), shares.end(), 0.0) / documents;
  for (const double s : shares) c.value.influence.push_back((s - c.value.value) / documents);
  for (const Counts& deal : dealt)
    for (const auto& document : deal)
      c.chance += top_share(document, c.top) / documents / static_cast<double>(dealt.size());
  return c;
}

/// Every document as many picks as it has, out of those of all documents.
std::vector<Counts> deal_at_random(const Counts& counts, const Philox& philox) {
  std::vector<std::int32_t> picks;
  for (const auto& document : counts)
    for (std::size_t e = 0; e < document.size(); ++e)
      picks.insert(picks.end(), idx(document[e]), static_cast<std::int32_t>(e));
  std::vector<Counts> deals;
  for (std::uint32_t s = 0; s < kPickShuffles; ++s) {
    shuffle(picks, philox, Shuffle::Deal, s, 0);
    Counts deal(counts.size(), std::vector<std::int64_t>(counts[0].size(), 0));
    auto next = picks.begin();
    for (std::size_t d = 0; d < counts.size(); ++d)
      for (auto left = std::accumulate(counts[d].begin(), counts[d].end(), std::int64_t{0}); left > 0; --left)
        ++deal[d][idx(*next++)];
    deals.push_back(std::move(deal));
  }
  return deals;
}

Contingency topic_table(const Counts& counts, const std::vector<std::int32_t>& domains) {
  Contingency table(*std::max_element(domains.begin(), domains.end()) + 1, static_cast<std::int64_t>(counts[0].size()));
  for (std::size_t d = 0; d < counts.size(); ++d)
    for (std::size_t e = 0; e < counts[d].size(); ++e)
      table.add(domains[d], static_cast<std::int64_t>(e), counts[d][e]);
  return table;
}

/// `other_of(document, pick)`: the row of the table that a pick belongs to.
template <typename OtherOf>
Information describe(const Contingency& table, std::span<const DocumentPicks> documents, const OtherOf& other_of) {
  Information info;
  const double plain = table.information(), n = static_cast<double>(table.total());
  info.correction = table.miller_madow();
  const bool expert_bounds = table.column_entropy() <= table.row_entropy();
  info.possible = std::min(table.column_entropy(), table.row_entropy());
  info.bits.value = plain + info.correction;
  const bool defined = info.possible > 0;
  info.normalized.value = defined ? info.bits.value / info.possible : std::numeric_limits<double>::quiet_NaN();
  for (const DocumentPicks& d : documents) {
    double bits = 0, bound = 0;  // first-order effect of the document on the plug-in values
    for (const PickCount& p : d.picks) {
      const std::int64_t row = other_of(d, p);
      const auto weight = static_cast<double>(p.count) / n;
      bits += weight * (table.pointwise(row, p.expert) - plain);
      bound += weight * ((expert_bounds ? table.column_surprise(p.expert) : table.row_surprise(row)) - info.possible);
    }
    info.bits.influence.push_back(bits);
    info.normalized.influence.push_back(defined ? (bits - info.normalized.value * bound) / info.possible : 0);
  }
  return info;
}

/// Which draw each document is a piece of: numbers from 0, in the order of the documents.
std::vector<std::size_t> draws_of(std::span<const DocumentPicks> documents) {
  std::map<std::pair<std::int32_t, std::int64_t>, std::size_t> files;
  std::vector<std::size_t> draws;
  std::size_t count = 0;
  for (const DocumentPicks& d : documents) {
    if (d.file == kOwnFile) {
      draws.push_back(count++);
      continue;
    }
    const auto [at, added] = files.try_emplace({d.domain, d.file}, count);
    count += added ? 1 : 0;
    draws.push_back(at->second);
  }
  return draws;
}

/// Files, with all of their documents, exchange their domains.
double topic_by_chance(const Counts& counts, std::span<const DocumentPicks> documents, const Philox& philox) {
  const std::vector<std::size_t> draws = draws_of(documents);
  std::vector<std::int32_t> labels(*std::max_element(draws.begin(), draws.end()) + 1);
  for (std::size_t d = 0; d < draws.size(); ++d) labels[draws[d]] = documents[d].domain;
  double sum = 0;
  for (std::uint32_t s = 0; s < kLabelShuffles; ++s) {
    shuffle(labels, philox, Shuffle::Labels, s, 0);
    std::vector<std::int32_t> domains;
    for (const std::size_t draw : draws) domains.push_back(labels[draw]);
    const Contingency table = topic_table(counts, domains);
    sum += table.information() + table.miller_madow();
  }
  return sum / kLabelShuffles;
}

/// The picks of a document exchange their tokens.
double surface_by_chance(std::span<const DocumentPicks> documents, std::int64_t tokens, std::int64_t experts,
                         const Philox& philox) {
  double sum = 0;
  for (std::uint32_t s = 0; s < kPickShuffles; ++s) {
    Contingency table(tokens, experts);
    for (std::size_t d = 0; d < documents.size(); ++d) {
      std::vector<std::int32_t> chosen;
      for (const PickCount& p : documents[d].picks) chosen.insert(chosen.end(), idx(p.count), p.expert);
      shuffle(chosen, philox, Shuffle::Tokens, s, static_cast<std::uint32_t>(d));
      auto next = chosen.begin();
      for (const PickCount& p : documents[d].picks)
        for (std::int64_t i = 0; i < p.count; ++i) table.add(p.token, *next++, 1);
    }
    sum += table.information() + table.miller_madow();
  }
  return sum / kPickShuffles;
}

/// Influences of files, by domain.
std::map<std::int32_t, std::vector<double>> files_of(const Measured& measured,
                                                     std::span<const DocumentPicks> documents) {
  require<ShapeError>(measured.influence.size() == documents.size(), "standard_error: {} influences of {} documents",
                      measured.influence.size(), documents.size());
  const std::vector<std::size_t> draws = draws_of(documents);
  std::map<std::int32_t, std::map<std::size_t, double>> sums;
  for (std::size_t d = 0; d < documents.size(); ++d) sums[documents[d].domain][draws[d]] += measured.influence[d];
  std::map<std::int32_t, std::vector<double>> strata;
  for (const auto& [domain, files] : sums)
    for (const auto& [draw, sum] : files) strata[domain].push_back(sum);
  return strata;
}

Measured mean_of(std::span<const LayerModularity> layers,
                 const std::function<const Measured&(const LayerModularity&)>& part) {
  Measured mean;
  mean.influence.assign(part(layers[0]).influence.size(), 0.0);
  const auto n = static_cast<double>(layers.size());
  for (const LayerModularity& layer : layers) {
    const Measured& m = part(layer);
    require<ShapeError>(m.influence.size() == mean.influence.size(),
                        "modularity: a layer of {} documents beside one of {}", m.influence.size(),
                        mean.influence.size());
    mean.value += m.value / n;
    for (std::size_t d = 0; d < m.influence.size(); ++d) mean.influence[d] += m.influence[d] / n;
  }
  return mean;
}

Information mean_information(std::span<const LayerModularity> layers, Information LayerModularity::*part) {
  Information mean;
  mean.bits = mean_of(layers, [&](const LayerModularity& l) -> const Measured& { return (l.*part).bits; });
  mean.normalized = mean_of(layers, [&](const LayerModularity& l) -> const Measured& { return (l.*part).normalized; });
  for (const LayerModularity& l : layers) {
    const auto n = static_cast<double>(layers.size());
    mean.correction += (l.*part).correction / n;
    mean.possible += (l.*part).possible / n;
    mean.chance += (l.*part).chance / n;
    mean.normalized_chance += (l.*part).normalized_chance / n;
  }
  return mean;
}

}  // namespace

double standard_error(const Measured& measured, std::span<const DocumentPicks> documents) {
  double variance = 0;
  for (const auto& [domain, values] : files_of(measured, documents)) {
    const auto n = static_cast<double>(values.size());
    const double mean = n > 1 ? std::accumulate(values.begin(), values.end(), 0.0) / n : 0;
    for (const double v : values) variance += (v - mean) * (v - mean) * (n > 1 ? n / (n - 1) : 1);
  }
  return std::sqrt(variance);
}

double half_interval(const Measured& measured, std::span<const DocumentPicks> documents) {
  std::size_t files = 0, freedom = 0;
  for (const auto& [domain, values] : files_of(measured, documents)) {
    files += values.size();
    freedom += std::max<std::size_t>(values.size() - 1, 1);
  }
  if (files < 2) return std::numeric_limits<double>::infinity();
  return student_quantile(static_cast<std::int64_t>(freedom)) * standard_error(measured, documents);
}

LayerModularity measure_layer(std::span<const DocumentPicks> documents, std::int64_t experts,
                              std::span<const double> shares, std::uint64_t seed) {
  check(documents, experts);
  const Philox philox(seed, RngPurpose::Shuffle);
  Counts counts;
  std::vector<std::int32_t> domains;
  std::int64_t tokens = 0;  // identities
  for (const DocumentPicks& d : documents) {
    counts.push_back(by_expert(d, experts));
    domains.push_back(d.domain);
    for (const PickCount& p : d.picks) tokens = std::max<std::int64_t>(tokens, p.token + 1);
  }
  LayerModularity layer;
  const std::vector<Counts> dealt = deal_at_random(counts, philox);
  for (const double share : shares) layer.concentration.push_back(concentration_at(share, counts, dealt));

  layer.topic = describe(topic_table(counts, domains), documents,
                         [](const DocumentPicks& d, const PickCount&) { return d.domain; });
  layer.topic.chance = topic_by_chance(counts, documents, philox);
  layer.topic.normalized_chance = layer.topic.chance / layer.topic.possible;

  Contingency surface(tokens, experts);
  for (const DocumentPicks& d : documents)
    for (const PickCount& p : d.picks) surface.add(p.token, p.expert, p.count);
  layer.surface = describe(surface, documents, [](const DocumentPicks&, const PickCount& p) { return p.token; });
  layer.surface.chance = surface_by_chance(documents, tokens, experts, philox);
  layer.surface.normalized_chance = layer.surface.chance / layer.surface.possible;
  return layer;
}

LayerModularity mean_over_layers(std::span<const LayerModularity> layers) {
  require<ShapeError>(!layers.empty(), "modularity: there are no layers");
  LayerModularity mean;
  for (std::size_t i = 0; i < layers[0].concentration.size(); ++i) {
    Concentration c;
    c.share = layers[0].concentration[i].share, c.top = layers[0].concentration[i].top;
    c.value = mean_of(layers, [&](const LayerModularity& l) -> const Measured& { return l.concentration.at(i).value; });
    for (const LayerModularity& l : layers)
      c.chance += l.concentration.at(i).chance / static_cast<double>(layers.size());
    mean.concentration.push_back(std::move(c));
  }
  mean.topic = mean_information(layers, &LayerModularity::topic);
  mean.surface = mean_information(layers, &LayerModularity::surface);
  return mean;
}

}  // namespace emox
