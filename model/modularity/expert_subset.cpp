#include "model/modularity/expert_subset.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/files/strict_json.h"

namespace emox {
namespace {

constexpr const char* kFormat = "emox-experts";
constexpr std::int64_t kVersion = 1;
constexpr std::int64_t kMost = 1 << 16;

std::vector<std::int32_t> read_layer(const StrictJson& list, std::int64_t experts, std::int64_t shared) {
  std::vector<std::int32_t> kept;
  for (const StrictJson& id : list.elements()) {
    kept.push_back(static_cast<std::int32_t>(id.integer(0, experts - 1)));
    if (kept.size() > 1 && kept[kept.size() - 2] >= kept.back()) id.reject("larger than the id before it");
  }
  for (std::int64_t s = experts - shared; s < experts; ++s)
    if (std::find(kept.begin(), kept.end(), s) == kept.end())
      list.reject(fmt::format("a list with the shared expert {}", s));
  kept.resize(kept.size() - idx(shared));
  if (kept.empty()) list.reject("a list with a routed expert");
  return kept;
}

std::vector<double> read_scores(const StrictJson& list, std::int64_t experts, std::int64_t shared) {
  std::vector<double> scores;
  for (const StrictJson& x : list.elements()) {
    if (!x.json().is_number()) x.reject("a number");
    scores.push_back(x.json().get<double>());
  }
  const auto n = static_cast<std::int64_t>(scores.size());
  if (n != experts && n != experts - shared) list.reject(fmt::format("a list of {} scores", experts - shared));
  return scores;
}

ExpertSubset read(const StrictJson& json) {
  if (json.at("format").text() != kFormat) json.at("format").reject(fmt::format("\"{}\"", kFormat));
  (void)json.at("version").integer(kVersion, kVersion);
  ExpertSubset subset;
  const auto layers = idx(json.at("layers").integer(1, kMost));
  subset.experts = json.at("experts").integer(1, kMost);
  subset.shared = json.at("shared_experts").integer(0, subset.experts - 1);
  const auto of_layers = [&](const char* key, bool may_be_empty) {
    std::vector<StrictJson> lists = json.at(key).elements();
    if (lists.size() != layers && !(may_be_empty && lists.empty()))
      json.at(key).reject(fmt::format("a list of {} layers", layers));
    return lists;
  };
  // The places in messages point into `json`, which these lists look into.
  for (const StrictJson& list : of_layers("kept", false))
    subset.routed.push_back(read_layer(list, subset.experts, subset.shared));
  for (const StrictJson& list : of_layers("scores", true))
    subset.scores.push_back(read_scores(list, subset.experts, subset.shared));
  if (!json.at("provenance").json().is_object()) json.at("provenance").reject("an object");
  subset.provenance = json.at("provenance").json();
  return subset;
}

}  // namespace

std::int64_t ExpertSubset::mean_keep() const {
  std::int64_t sum = 0;
  for (std::size_t l = 0; l < routed.size(); ++l) sum += keep(l);
  const auto layers = static_cast<std::int64_t>(routed.size());
  return layers > 0 ? (sum + layers - 1) / layers : 0;
}

bool ExpertSubset::uniform() const {
  return std::all_of(routed.begin(), routed.end(), [&](const auto& layer) { return layer.size() == routed[0].size(); });
}

nlohmann::ordered_json ExpertSubset::to_json() const {
  auto kept = nlohmann::ordered_json::array();
  for (std::vector<std::int32_t> layer : routed) {
    for (std::int64_t s = experts - shared; s < experts; ++s) layer.push_back(static_cast<std::int32_t>(s));
    kept.push_back(std::move(layer));
  }
  return {{"format", kFormat},
          {"version", kVersion},
          {"layers", routed.size()},
          {"experts", experts},
          {"shared_experts", shared},
          {"kept", std::move(kept)},
          {"scores", scores.empty() ? nlohmann::ordered_json::array() : nlohmann::ordered_json(scores)},
          {"provenance", provenance}};
}

ExpertSubset ExpertSubset::from_json(const nlohmann::json& json, const std::string& source) {
  try {
    return read(StrictJson(json, ""));
  } catch (const IoError& e) {
    fail<UsageError>("{} is not a subset of experts as `emox select` writes it: {}", source, e.message());
  }
}

ExpertSubset ExpertSubset::from_file(const std::filesystem::path& path) {
  std::ifstream in(path);
  require<UsageError>(in.good(), "{} cannot be read: give a file that `emox select` wrote", path.string());
  const nlohmann::json json = nlohmann::json::parse(in, nullptr, false);
  require<UsageError>(!json.is_discarded(), "{} is not JSON: give a file that `emox select` wrote", path.string());
  return from_json(json, path.string());
}

void ExpertSubset::check_model(const ModelConfig& model, const std::string& source) const {
  require<UsageError>(model.is_moe(), "{} chooses experts, but the model is dense", source);
  const auto layers = static_cast<std::int64_t>(routed.size());
  require<UsageError>(
      layers == model.layers && experts == model.num_experts && shared == model.shared_experts,
      "{} is for a model of {} layers with {} experts, {} of them shared; this one has {} layers with {}, {} of them "
      "shared",
      source, layers, experts, shared, model.layers, model.num_experts, model.shared_experts);
}

std::vector<std::int64_t> check_budgets(const ModelConfig& model, std::vector<std::int64_t> keep,
                                        const std::string& origin) {
  require<UsageError>(model.is_moe(), "{}: the model is dense, there are no experts to choose from", origin);
  require<UsageError>(keep.size() == 1 || static_cast<std::int64_t>(keep.size()) == model.layers,
                      "{} gives {} numbers; give one for all layers, or one for each of the {}", origin, keep.size(),
                      model.layers);
  for (const std::int64_t k : keep)
    require<UsageError>(k > model.shared_experts && k <= model.num_experts,
                        "{} = {} is not possible: shared experts count, so keep {} to {} of {}", origin, k,
                        model.shared_experts + 1, model.num_experts, model.num_experts);
  if (keep.size() == 1) keep.resize(idx(model.layers), keep[0]);
  return keep;
}

}  // namespace emox
