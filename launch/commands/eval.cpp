// `emox eval`: held-out loss of a checkpoint, with all of its experts or with some.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "launch/analysis/inference/held_out_losses.h"
#include "launch/commands/command.h"
#include "launch/commands/selection_arguments.h"
#include "launch/config/arguments.h"
#include "launch/config/changes.h"
#include "launch/config/recipe_file.h"
#include "launch/run/failure.h"
#include "launch/run/on_ranks.h"
#include "runtime/core/error.h"
#include "runtime/telemetry/json_text.h"

namespace emox {
namespace {

constexpr const char* kCommand = "emox eval";

void print_modularity(const std::pair<Evaluation, Modularity>& result, const std::string& data, bool json) {
  if (!json) {
    fmt::print("{}", result.second.to_text());
    return;
  }
  nlohmann::ordered_json whole = result.first.to_json();
  whole["data"] = data;
  whole["modularity"] = result.second.to_json();
  fmt::print("{}\n", json_text(whole));
}

// "moe.top_k (was 4, now 2)" for what the command line changes in the model that was trained.
std::vector<std::string> other_model_keys(const LoadedModel& loaded) {
  std::vector<std::string> keys = list_changes(parse_recipe(loaded.manifest.recipe, "manifest.json"), loaded.recipe);
  std::erase_if(keys, [](const std::string& k) { return !k.starts_with("model.") && !k.starts_with("moe."); });
  return keys;
}

}  // namespace

int run_eval(const std::vector<std::string>& args) {
  const Arguments a =
      parse_args(args, {.command = kCommand,
                        .flags = {"--json", "--modularity"},
                        .options = {"--experts", "--keep", "--layer-budgets", "--method", "--examples", "--seed"},
                        .overrides = true,
                        .min_positional = 1,
                        .max_positional = 1,
                        .positional = "RUN|CHECKPOINT"});
  const bool choose = a.has("--keep") || a.has("--layer-budgets");
  require<UsageError>(!choose || !a.has("--experts"), "{}: --experts names the experts already: leave out --keep",
                      kCommand);
  for (const char* option : {"--method", "--examples", "--seed"})
    require<UsageError>(choose || !a.has(option), "{}: {} says how experts are chosen, but not how many: add --keep=K",
                        kCommand, option);
  require<UsageError>(!a.has("--modularity") || (!choose && !a.has("--experts")),
                      "{}: --modularity looks at the whole model: leave out --keep and --experts", kCommand);
  std::optional<SelectionOptions> options;
  if (choose) options = selection_options(kCommand, a);
  std::optional<ExpertSubset> subset;
  if (a.has("--experts")) subset = ExpertSubset::from_file(a.value("--experts"));
  return on_ranks(a.overrides, [&](Session& session) {
    LoadedModel loaded(session, a.positional[0], a.overrides);
    HeldOutLosses losses(session, loaded);
    if (a.has("--modularity")) {
      const auto result = losses.modularity();
      if (session.root()) print_modularity(result, losses.data(), a.has("--json"));
      return static_cast<int>(kDone);
    }
    std::optional<Evaluation> some;
    if (subset) some = losses.with(*subset, a.value("--experts"));
    if (options) some = losses.with_own_experts(*options);
    const Evaluation full = losses.with_all();
    if (!session.root()) return static_cast<int>(kDone);
    const std::vector<std::string> other = other_model_keys(loaded);
    if (!other.empty()) session.log().warn("this is not the run's own model: {}", fmt::join(other, ", "));
    if (subset) warn_of_other_run(session.log(), *subset, a.value("--experts"), loaded.recipe.run, loaded.path);
    if (a.has("--json")) {
      nlohmann::ordered_json json = (some ? *some : full).to_json();
      json["data"] = losses.data();
      json["part"] = loaded.recipe.data.eval_part_name();
      json["load"] = {{"bytes", loaded.read.all_bytes}, {"files_opened", loaded.read.all_files}};
      if (!losses.skipped().empty()) json["not_evaluated"] = losses.skipped();
      if (!other.empty()) json["other_model_keys"] = other;
      if (subset) json["experts_from"] = subset->provenance;
      if (some) json["full"] = full.to_json();
      if (const auto changes = changes_of(loaded.manifest); !changes.empty()) json["changes"] = changes;
      fmt::print("{}\n", json_text(json));
      return static_cast<int>(kDone);
    }
    if (loaded.recipe.data.eval_part == HeldOutPart::Tune)
      fmt::print("On the documents for choosing settings (data.eval_part = tune), not on those of reports:\n");
    if (some) {
      fmt::print("with {} experts a layer{}:\n{}\nwith all {}:\n{}", some->experts_kept,
                 options ? ", chosen for each domain" : "", some->to_text(), full.experts_kept, full.to_text());
    } else {
      fmt::print("{}", full.to_text());
    }
    return static_cast<int>(kDone);
  });
}

}  // namespace emox
