// What a start or a resume settles before the first step: the recipe as it counts, where the data go on, what changes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "data/loader/loader.h"
#include "launch/config/recipe.h"
#include "model/optim/schedule.h"
#include "parallel/checkpoint/manifest.h"

namespace emox {

LoaderConfig loader_config(const Recipe& recipe);
Schedule schedule_of(const Recipe& recipe);
StepConfig step_config(const Recipe& recipe);

struct RunStart {
  Recipe recipe;  ///< what is recorded: run.change is empty, an anneal's rate is its peak, and a run whose batch
                  ///< has changed counts its length in steps
  std::int64_t step = 0;  ///< done already
  LoaderStart data = {};
  nlohmann::json changes = nlohmann::json::array();  ///< of this resume and of all before: {step, key, old, new}
  std::size_t new_changes = 0;                       ///< the last ones: of this resume
  nlohmann::json identity = nullptr;                 ///< of the data: data/loader/identity.h
  std::optional<double> anneal_rate = {};            ///< train.learning_rate as the anneal's recipe gave it
  std::vector<std::string> notes = {};               ///< for the log

  /// Trained until step `until` is done, which is not before the present batch began.
  std::int64_t tokens_after(std::int64_t until) const;
  /// What a manifest keeps besides the recipe, for plan_resume.
  nlohmann::json to_extra() const;
};

/// Whether train.learning_rate stands in the recipe's file or the command; otherwise its value is only a default.
enum class RateGiven : bool { No, Yes };

/// What a resume knows besides its recipe.
struct ResumeFacts {
  RateGiven rate = RateGiven::Yes;
  int ranks = 0;  ///< of this job; 0: not known, then what depends on them is not compared (balance_group.h)
  /// Labels of sources whose text is not what the checkpoint was trained on; only run.change = data.source allows that.
  std::vector<std::string> replaced = {};
  /// And of those whose held-out text is not what it was, which the order of the training text does not depend on.
  std::vector<std::string> held_out_replaced = {};
};

/// Of a run without a checkpoint. UsageError for an anneal, which goes on with one.
RunStart plan_start(const Recipe& recipe);
/// Of a run whose newest checkpoint is `found`. UsageError when its recipe may not change so (changes.h), or when the
/// checkpoint holds no recipe. An anneal falls from the rate that the run had at that step, unless its recipe gives
/// another one.
RunStart plan_resume(const Recipe& recipe, const Manifest& found, const std::string& checkpoint,
                     const ResumeFacts& facts = {});
/// One of both, by the newest manifest in `checkpoints` that can be read; the other files are not looked at.
RunStart plan_from_newest(const Recipe& recipe, const std::filesystem::path& checkpoints);

}  // namespace emox
