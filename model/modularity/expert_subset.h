// Which experts of a model are kept, how they were found, and the file that says so (spec 6.1).
//
// {"format": "emox-experts", "version": 1, "layers": L, "experts": N, "shared_experts": n_s,
//  "kept": [[rising ids of a layer, the shared ones last], ...], "scores": [[of each expert], ...] or [],
//  "provenance": {...}}
// Ids are those of the whole model, whose shared experts are the last n_s of N. Every layer keeps all of those.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/transformer/config.h"

namespace emox {

struct ExpertSubset {
  std::int64_t experts = 0;                       ///< N of a layer of the whole model, shared included
  std::int64_t shared = 0;                        ///< n_s
  std::vector<std::vector<std::int32_t>> routed;  ///< the kept routed experts of each layer, rising, at least one
  /// What each layer's choice was made by: n_r or, with the shared experts behind, N numbers; no layers for `random`.
  std::vector<std::vector<double>> scores;
  nlohmann::ordered_json provenance = nlohmann::ordered_json::object();  ///< free: where it is from

  /// keep-K of a layer: shared experts count.
  std::int64_t keep(std::size_t layer) const { return static_cast<std::int64_t>(routed[layer].size()) + shared; }
  /// Mean of keep() over layers, rounded up; all alike: that number.
  std::int64_t mean_keep() const;
  /// All layers keep equally many.
  bool uniform() const;

  nlohmann::ordered_json to_json() const;
  /// What to_json() gave. UsageError that names `source` (a file) and the place in it for anything else.
  static ExpertSubset from_json(const nlohmann::json& json, const std::string& source);
  static ExpertSubset from_file(const std::filesystem::path& path);
  /// UsageError that names `source` unless the subset is one of this model's.
  void check_model(const ModelConfig& model, const std::string& source) const;
};

/// The same number for every layer, or one each. UsageError unless `keep` holds 1 or as many numbers as the model has
/// layers, each between one routed expert and all: "4,4,8".
std::vector<std::int64_t> check_budgets(const ModelConfig& model, std::vector<std::int64_t> keep,
                                        const std::string& origin);

}  // namespace emox
