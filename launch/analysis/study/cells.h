// The runs of a study: EMO, its baselines and ablations, each with its own resolved recipe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launch/config/recipe.h"

namespace emox {

/// What a cell may be; a study compares the first two unless told otherwise.
inline constexpr const char* kCellModels[] = {
    "emo",        "standard",     "dense",       "quarter-experts", "eighth-experts", "all-pooled",
    "fixed-pool", "quarter-free", "free-tokens", "local-balance",   "label-pools",    "no-shared"};

/// What is measured of a cell's model besides the loss with all of its experts.
struct RetentionPlan {
  std::vector<std::int64_t> keep;  ///< experts a layer that remain, shared included; none: nothing else
  bool every_selection = true;     ///< false: experts chosen from 32 training documents of the domain only
  std::int64_t chance_draws = 8;   ///< random subsets of every domain and number of experts
};

struct StudyCell {
  std::string model;  ///< one of kCellModels
  std::int64_t seed = 0;
  Recipe recipe;  ///< run.name "emo-seed1", run.dir DIR/cells/emo-seed1; a final evaluation
  RetentionPlan plan;
  bool repeat = false;   ///< a second run that differs in rounding only
  std::string settings;  ///< of a cell of the tuning: "train.learning_rate=0.008 moe.pool_max=16"
};

/// A value of one model of the study: "standard:train.learning_rate=16e-3".
struct CellSetting {
  std::string model, key, value;
};

/// "emo,standard", "all", or with fewer-experts for quarter-experts and eighth-experts. UsageError for an unknown name
/// (with the nearest), a repeated one, or none.
std::vector<std::string> parse_cells(const std::string& text);
/// "MODEL[,MODEL...]:KEY=VALUE": a setting for each model. UsageError for another form, an unknown model, and for a key
/// that is not one of sections model, moe and train: a study compares on the same data.
std::vector<CellSetting> parse_settings(const std::vector<std::string>& texts);

struct CellOptions {
  std::vector<CellSetting> settings;  ///< of any model; applied after what makes the cell
  std::int64_t chance_draws = 8;
  std::vector<std::string>* left_out = nullptr;  ///< not null: takes a line for a cell that this recipe does not have,
                                                 ///< which is an error otherwise
};

/// Seed by seed, so that a study that is stopped early has compared something. The cells of a seed read the same data
/// in the same order and attend alike; those with as many experts start from the same values. They differ in [moe]
/// only, but for `dense` and for what CellOptions::settings say:
///   standard         no pools
///   dense            one feed-forward layer as wide as the experts of a token, shared included: the same active
///                    parameters and operations as the standard MoE without its router
///   quarter-experts  a standard MoE that has only as many experts as the second and third of kept_numbers(): what
///   eighth-experts   takes the memory of the subset, trained for it; a token picks as many, or all
///   all-pooled       every document and token has its pool, in all layers and steps
///   fixed-pool       the same with pools of a quarter of the routed experts (as the paper's ablation), a token's picks
///                    at least
///   quarter-free     as all-pooled, but a quarter of the documents have no pool in any layer
///   free-tokens      as all-pooled, but half of the tokens, drawn for each layer, may leave their document's pool
///   local-balance    balance_scope = local
///   label-pools      experts divided over the data labels, for all documents, steps and layers
///   no-shared        the shared experts become routed ones: the same total, the same number a token
/// `base` is the EMO recipe: UsageError for a dense one, one without pools, one that evaluates on the tuning part, and
/// for a cell that would be the same as emo with this recipe on `ranks` ranks.
std::vector<StudyCell> study_cells(const Recipe& base, const std::vector<std::string>& models, std::int64_t seeds,
                                   int ranks, const CellOptions& options = {});

/// The cell once more, "emo-seed1-repeat": half the micro-batches, which under balance_scope = step is the same
/// computation in another order of its sums. UsageError for another scope, and when a rank's share is one sequence.
StudyCell rounding_repeat(const StudyCell& cell, int ranks);

/// One key and the values to try: "train.learning_rate=4e-3,8e-3".
struct TuneAxis {
  std::string key;
  std::vector<std::string> values;
};
std::vector<TuneAxis> parse_tune(const std::vector<std::string>& texts);
/// Every model with every combination of the values, in base.run.dir/tuning/NAME, evaluated on the tuning part of the
/// held-out documents (data.eval_part = tune), with all experts and with the fewest of kept_numbers().
std::vector<StudyCell> tuning_cells(const Recipe& base, const std::vector<std::string>& models, std::int64_t seeds,
                                    int ranks, const std::vector<TuneAxis>& axes, const CellOptions& options = {});

/// Experts a layer, shared included, that are half, a quarter and an eighth of all, rounded half up: falling, without
/// repetition, at least one routed one, never all of them.
std::vector<std::int64_t> kept_numbers(const ModelConfig& model);

/// What a table calls the model: "EMO, 75 % of documents free", "standard MoE of 16 experts".
std::string model_label(const std::string& model, const Recipe& recipe);

}  // namespace emox
