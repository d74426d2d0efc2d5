#include "parallel/expert/placement.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/rng/philox.h"

namespace emox {
namespace {

/// The rank of the i-th of n things dealt out in blocks whose sizes differ by at most one.
std::int32_t block_of(std::int64_t i, std::int64_t n, int ranks) {
  return static_cast<std::int32_t>(((i + 1) * ranks - 1) / n);
}

void check_sizes(std::int64_t experts, int ranks) {
  require<UsageError>(ranks >= 1 && experts >= ranks,
                      "{} routed experts cannot be placed on {} ranks with at least one on each; use "
                      "parallel.expert_parallel of at most {}",
                      experts, ranks, experts);
}

}  // namespace

ExpertPlacement ExpertPlacement::block(std::int64_t layers, std::int64_t experts, int ranks) {
  check_sizes(experts, ranks);
  ExpertPlacement p(experts, ranks);
  for (std::int64_t l = 0; l < layers; ++l)
    for (std::int64_t e = 0; e < experts; ++e) p.table_.push_back(block_of(e, experts, ranks));
  return p;
}

ExpertPlacement ExpertPlacement::random(std::int64_t layers, std::int64_t experts, int ranks, std::uint64_t seed) {
  check_sizes(experts, ranks);
  ExpertPlacement p(experts, ranks);
  p.table_.resize(idx(layers * experts));
  const Philox philox(seed, RngPurpose::Placement);
  std::vector<std::int64_t> order(idx(experts));
  for (std::int64_t l = 0; l < layers; ++l) {
    std::iota(order.begin(), order.end(), std::int64_t{0});
    for (std::int64_t i = experts - 1; i > 0; --i) {  // Fisher-Yates
      const std::int64_t j = philox.uniform_int(0, i, {static_cast<std::uint32_t>(l), static_cast<std::uint32_t>(i)});
      std::swap(order[idx(i)], order[idx(j)]);
    }
    for (std::int64_t i = 0; i < experts; ++i) p.table_[idx(l * experts + order[idx(i)])] = block_of(i, experts, ranks);
  }
  return p;
}

ExpertPlacement ExpertPlacement::from_table(const std::vector<std::vector<std::int32_t>>& table, int ranks) {
  require<ShapeError>(!table.empty(), "a placement of no layer");
  const auto experts = static_cast<std::int64_t>(table.front().size());
  check_sizes(experts, ranks);
  ExpertPlacement p(experts, ranks);
  for (const auto& layer : table) {
    require<ShapeError>(static_cast<std::int64_t>(layer.size()) == experts, "layers of {} and {} experts", experts,
                        layer.size());
    std::vector<std::int64_t> owned(idx(ranks), 0);
    for (const std::int32_t r : layer) ++owned.at(idx(r));
    const auto [least, most] = std::minmax_element(owned.begin(), owned.end());
    require<ShapeError>(*most - *least <= 1, "ranks with {} and {} experts of a layer", *least, *most);
    p.table_.insert(p.table_.end(), layer.begin(), layer.end());
  }
  return p;
}

ExpertPlacement ExpertPlacement::from_json(const nlohmann::json& json, const std::string& source, std::int64_t layers,
                                           std::int64_t experts, int ranks) {
  check_sizes(experts, ranks);
  ExpertPlacement p(experts, ranks);
  std::vector<std::vector<std::int64_t>> table;
  try {
    const auto made_for = json.at("expert_parallel").get<std::int64_t>();
    require<UsageError>(made_for == ranks,
                        "{} places experts on {} ranks, but parallel.expert_parallel is {}; set it to {}, or make a "
                        "placement for {} ranks",
                        source, made_for, ranks, made_for, ranks);
    table = json.at("table").get<std::vector<std::vector<std::int64_t>>>();
  } catch (const nlohmann::json::exception& e) {
    fail<UsageError>(
        "{} is not a placement ({}); it must be {{\"expert_parallel\": R, \"table\": [[rank of expert 0, "
        "...] for each layer]}}",
        source, e.what());
  }
  require<UsageError>(static_cast<std::int64_t>(table.size()) == layers,
                      "{} places the experts of {} layers, the model has {}", source, table.size(), layers);
  for (std::size_t l = 0; l < table.size(); ++l) {
    require<UsageError>(static_cast<std::int64_t>(table[l].size()) == experts,
                        "{}: layer {} places {} experts, the model has {} routed ones", source, l, table[l].size(),
                        experts);
    std::vector<std::int64_t> owned(idx(ranks), 0);
    for (std::size_t e = 0; e < table[l].size(); ++e) {
      const std::int64_t r = table[l][e];
      require<UsageError>(r >= 0 && r < ranks, "{}: layer {} places expert {} on rank {}, there are {} ranks", source,
                          l, e, r, ranks);
      ++owned[idx(r)];
      p.table_.push_back(static_cast<std::int32_t>(r));
    }
    const auto [least, most] = std::minmax_element(owned.begin(), owned.end());
    require<UsageError>(*most - *least <= 1,
                        "{}: layer {} places {} experts on rank {} and {} on rank {}; the counts may differ by one",
                        source, l, *most, most - owned.begin(), *least, least - owned.begin());
  }
  return p;
}

ExpertPlacement ExpertPlacement::from_file(const std::filesystem::path& path, std::int64_t layers, std::int64_t experts,
                                           int ranks) {
  std::ifstream in(path);
  require<UsageError>(in.good(), "parallel.placement_file {} cannot be read", path.string());
  const nlohmann::json json = nlohmann::json::parse(in, nullptr, false);
  require<UsageError>(!json.is_discarded(), "parallel.placement_file {} is not JSON", path.string());
  // A checkpoint's manifest is as good as a bare placement.
  return from_json(json.is_object() && json.contains("placement") ? json.at("placement") : json, path.string(), layers,
                   experts, ranks);
}

nlohmann::json ExpertPlacement::to_json() const {
  nlohmann::json table = nlohmann::json::array();
  for (std::int64_t l = 0; l < layers(); ++l) {
    const auto row = of_layer(l);
    table.push_back(std::vector<std::int32_t>(row.begin(), row.end()));
  }
  return {{"expert_parallel", ranks_}, {"table", table}};
}

std::vector<std::int32_t> ExpertPlacement::experts_of(std::int64_t layer, int rank) const {
  std::vector<std::int32_t> owned;
  const auto row = of_layer(layer);
  for (std::int64_t e = 0; e < experts_; ++e)
    if (row[idx(e)] == rank) owned.push_back(static_cast<std::int32_t>(e));
  return owned;
}

}  // namespace emox
