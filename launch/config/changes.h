// What a resume changes in the recipe of its run (key run.change), and what it may.
//
// Three kinds of keys: those without influence on the result (where and how it is computed, saved, evaluated), which
// are free; those that a run is made of (the shape of its model, the order of its data), which no resume changes; all
// others, which a resume changes when run.change names them. What data.source and data.token_type read is compared by
// content, not here: here a source is its label and its share.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "launch/config/recipe.h"
#include "parallel/checkpoint/manifest.h"

namespace emox {

/// Where a run stands when it is resumed. Its first tokens may have been trained with another batch: `base` is where
/// the present batch and sources began.
struct RunPoint {
  std::int64_t step = 0, tokens = 0;
  std::int64_t base_step = 0, base_tokens = 0;
};

struct RecipeChange {
  std::string key;
  std::vector<std::string> before, now;  ///< as written in a recipe
  bool is_list = false;
};

struct ResumeChanges {
  std::vector<RecipeChange> made;     ///< in the order of the recipe's keys; to be recorded
  std::vector<std::string> idle;      ///< named by run.change, but as before
  std::int64_t total_steps = 0;       ///< of the whole run, train.tokens counted from where the batch changed
  bool anneal_begins = false;         ///< with this resume
  bool data_order_continues = false;  ///< batch, sources and their shares are as before
};

/// The keys of run.change. UsageError: an unknown key (the nearest one is named), or one that no resume can change.
std::vector<std::string> change_keys(const std::string& run_change);

/// What differs between the recipe of a run's checkpoint and that of the resume. UsageError that lists every key that
/// differs and may not, with what can be done; also when an anneal does not begin where the run is, or the run is
/// already beyond the new last step. An anneal may change the schedule and the pools without being told so.
ResumeChanges compare_recipes(const Recipe& before, const Recipe& now, const RunPoint& at);

/// {"step": .., "key": .., "old": .., "new": ..}: what manifest and run.json keep of a change.
nlohmann::json to_json(const RecipeChange& change, std::int64_t step);
/// Those of a checkpoint, from its manifest.
nlohmann::json changes_of(const Manifest& manifest);
/// "step 8: train.learning_rate 0.001 -> 0.0001" for every such record.
std::vector<std::string> change_lines(const nlohmann::json& records);

}  // namespace emox
