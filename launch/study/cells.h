// The runs of a study: EMO, the matched standard MoE and ablations, each with its own resolved recipe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launch/config/recipe.h"

namespace emox {

/// What a cell may be; a study compares the first two unless told otherwise.
inline constexpr const char* kCellModels[] = {"emo",           "standard",    "fixed-pool", "quarter-free",
                                              "local-balance", "label-pools", "no-shared"};

struct StudyCell {
  std::string model;  ///< one of kCellModels
  std::int64_t seed = 0;
  Recipe recipe;  ///< run.name "emo-seed1", run.dir DIR/cells/emo-seed1; a final evaluation
};

/// "emo,standard" or "all". UsageError for an unknown name (with the nearest), a repeated one, or none.
std::vector<std::string> parse_cells(const std::string& text);

/// Seed by seed, so that a study that is stopped early has compared something. The cells of a seed read the same data
/// in the same order, start from the same values where their shapes agree, and attend alike; they differ in [moe] only:
///   standard       no pools
///   fixed-pool     pools of a quarter of the routed experts (as the paper's ablation), a token's picks at least
///   quarter-free   a quarter of the documents without a pool in any layer
///   local-balance  balance_scope = local
///   label-pools    experts divided over the data labels, for all documents, steps and layers
///   no-shared      the shared experts become routed ones: the same total, the same number a token
/// `base` is the EMO recipe: UsageError for a dense one, one without pools, and for a cell that would be the same as
/// emo with this recipe on `ranks` ranks.
std::vector<StudyCell> study_cells(const Recipe& base, const std::vector<std::string>& models, std::int64_t seeds,
                                   int ranks);

}  // namespace emox
