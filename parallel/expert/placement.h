// Which rank of an expert group holds which expert: a table, never a formula (design 4.5).
//
// The routed experts of a layer are spread so that the ranks' counts differ by at most one. Shared experts are not
// here: every rank has them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <vector>

#include "runtime/core/idx.h"

namespace emox {

class ExpertPlacement {
 public:
  /// Consecutive experts on one rank, the same in every layer; the ranks' counts differ by at most one.
  static ExpertPlacement block(std::int64_t layers, std::int64_t experts, int ranks);
  /// A permutation a layer, drawn from (seed, layer), dealt out in blocks.
  static ExpertPlacement random(std::int64_t layers, std::int64_t experts, int ranks, std::uint64_t seed);
  /// {"expert_parallel": R, "table": [[rank of expert 0, rank of expert 1, ...] a layer]}: what to_json() gives, what a
  /// checkpoint's manifest holds under "placement". UsageError naming `source` (a file) when it is for another model or
  /// number of ranks, or when a layer's counts differ by more than one.
  static ExpertPlacement from_json(const nlohmann::json& json, const std::string& source, std::int64_t layers,
                                   std::int64_t experts, int ranks);
  static ExpertPlacement from_file(const std::filesystem::path& path, std::int64_t layers, std::int64_t experts,
                                   int ranks);
  /// [layers][experts] ranks, whose counts differ by one at most in every layer: ShapeError.
  static ExpertPlacement from_table(const std::vector<std::vector<std::int32_t>>& table, int ranks);
  nlohmann::json to_json() const;

  std::int64_t layers() const { return static_cast<std::int64_t>(table_.size()) / experts_; }
  std::int64_t experts() const { return experts_; }
  int ranks() const { return ranks_; }
  /// [experts] rank of each expert of a layer.
  std::span<const std::int32_t> of_layer(std::int64_t layer) const {
    return std::span(table_).subspan(idx(layer * experts_), idx(experts_));
  }
  /// The experts of a rank, rising: the order of their weights in its memory.
  std::vector<std::int32_t> experts_of(std::int64_t layer, int rank) const;

 private:
  ExpertPlacement(std::int64_t experts, int ranks) : experts_(experts), ranks_(ranks) {}
  std::int64_t experts_;
  int ranks_;
  std::vector<std::int32_t> table_;  ///< [layers, experts]
};

}  // namespace emox
