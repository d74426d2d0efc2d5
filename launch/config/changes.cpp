#include "launch/config/changes.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>

#include "data/loader/loader.h"
#include "launch/config/fields.h"
#include "launch/config/nearest.h"
#include "runtime/core/error.h"
#include "runtime/core/quoted.h"

namespace emox {
namespace {

template <std::size_t N>
bool is_one_of(const std::string& name, const std::string_view (&names)[N]) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

// No resume changes these: the text says why.
struct Fixed {
  std::string_view key, why;
};
constexpr std::string_view kShape = "the shape of the model", kOrder = "the order of the data",
                           kBeginning = "how the run began";
constexpr Fixed kFixed[] = {{"run.seed", kOrder},
                            {"run.warm_start", kBeginning},
                            {"run.warm_start_state", kBeginning},
                            {"model.d_model", kShape},
                            {"model.layers", kShape},
                            {"model.heads", kShape},
                            {"model.vocab_size", kShape},
                            {"model.sequence_length", kOrder},
                            {"model.dense_ff", kShape},
                            {"moe.num_experts", kShape},
                            {"moe.shared_experts", kShape},
                            {"moe.expert_ff", kShape},
                            {"data.tokenizer", "what a token means"}};

const Fixed* fixed(const std::string& key) {
  const auto found = std::find_if(std::begin(kFixed), std::end(kFixed), [&](const Fixed& f) { return f.key == key; });
  return found == std::end(kFixed) ? nullptr : found;
}

std::string fixed_keys() {
  std::vector<std::string_view> names;
  for (const Fixed& f : kFixed) names.push_back(f.key);
  return fmt::format("{}", fmt::join(names, ", "));
}

// Whether the value has no influence on the result of the run, or is compared by content elsewhere.
bool is_free(const std::string& name, const std::string& section, const Recipe& now) {
  constexpr std::string_view kSections[] = {"parallel", "checkpoint", "eval"};
  constexpr std::string_view kKeys[] = {"run.name",
                                        "run.dir",
                                        "run.change",
                                        "run.device",
                                        "train.threads",
                                        "data.token_type",
                                        "run.stop_after_step",
                                        "run.stop_after_minutes",
                                        "run.wait_s",
                                        "train.micro_batch_memory"};
  if (is_one_of(section, kSections) || is_one_of(name, kKeys)) return true;
  if (name == "model.dense_ff") return now.model.is_moe();  // which has no such layer
  // Only the micro_batch and local scopes see how the batch is cut.
  const bool cut_matters = now.model.is_moe() && now.model.balance_scope != BalanceScope::Step;
  return name == "train.micro_batch_sequences" && !cut_matters;
}

// What an anneal may set anew on top of a run: the schedule, and what turns standard training into EMO training.
bool is_for_anneal(const std::string& name) {
  constexpr std::string_view kKeys[] = {"train.steps",
                                        "train.learning_rate",
                                        "train.schedule",
                                        "train.warmup_steps",
                                        "train.min_lr_ratio",
                                        "train.decay_steps",
                                        "train.anneal_from_step",
                                        "moe.pool",
                                        "moe.pool_size",
                                        "moe.pool_min",
                                        "moe.pool_max",
                                        "moe.pool_free_share",
                                        "moe.pool_free_tokens",
                                        "moe.eval_pool",
                                        "moe.eos",
                                        "model.intra_document_attention"};
  return is_one_of(name, kKeys);
}

std::string text_of(const std::vector<std::string>& values) { return fmt::format("{}", fmt::join(values, " ")); }

// "label:0.25" of every source: the same however paths and weights are written.
std::vector<std::string> shares_of(const std::vector<std::string>& sources) {
  std::vector<SourceSpec> specs;
  double total = 0;
  for (const std::string& s : sources) total += specs.emplace_back(SourceSpec::parse(s)).weight;
  std::vector<std::string> shares;
  for (const SourceSpec& s : specs) shares.push_back(fmt::format("{}:{:.9f}", s.label, s.weight / total));
  return shares;
}

std::string same_path(const std::string& path) {
  std::error_code error;
  const auto resolved = std::filesystem::weakly_canonical(path, error);
  return path.empty() || error ? path : resolved.string();
}

// How two values are compared: not by how they are written.
std::vector<std::string> compared(const std::string& key, const std::vector<std::string>& values) {
  if (key == "data.source") return shares_of(values);
  if (key == "run.warm_start") return {same_path(values.front())};
  return values;
}

std::int64_t total_steps(const Recipe& before, const Recipe& now, const RunPoint& at) {
  if (now.train.steps > 0) return now.train.steps;
  const bool new_batch = now.train.batch_sequences != before.train.batch_sequences;
  const std::int64_t step = new_batch ? at.step : at.base_step, tokens = new_batch ? at.tokens : at.base_tokens;
  const std::int64_t left = std::max<std::int64_t>(now.train.tokens - tokens, 0), a_step = now.tokens_per_step();
  return step + left / a_step + (left % a_step != 0 ? 1 : 0);
}

void check_anneal(const Recipe& now, const RunPoint& at) {
  const std::int64_t from = now.train.anneal_from_step;
  if (at.step == from) return;
  fail<UsageError>("train.anneal_from_step = {}, but the newest checkpoint of the run in {} is of step {}: {}", from,
                   now.run.dir, at.step,
                   at.step < from
                       ? fmt::format("first train it to step {} with its own recipe, or anneal from {}", from, at.step)
                       : fmt::format("it is past that step; anneal from {}, or name the run that ended there with "
                                     "--run.dir=DIR",
                                     at.step));
}

// `keys`: what run.change names already.
[[noreturn]] void refuse(const Recipe& now, const std::vector<RecipeChange>& changeable,
                         const std::vector<RecipeChange>& never, std::vector<std::string> keys) {
  std::vector<std::string> all;
  for (const auto* list : {&changeable, &never})
    for (const RecipeChange& c : *list)
      all.push_back(fmt::format("{} (was {}, now {})", c.key, text_of(c.before), text_of(c.now)));
  for (const RecipeChange& c : changeable) keys.push_back(c.key);
  std::string advice = "restore them";
  if (never.empty()) advice += fmt::format(", let this resume change them with --run.change={}", fmt::join(keys, ","));
  std::string why;
  for (const RecipeChange& c : never)
    why += fmt::format("; {} is {}: no resume can change it", c.key, fixed(c.key)->why);
  fail<UsageError>(
      "the run in {} cannot be resumed with other values of {}{}; {}, or start a new run with another run.dir",
      now.run.dir, fmt::join(all, ", "), why, advice);
}

}  // namespace

std::vector<std::string> change_keys(const std::string& run_change) {
  std::vector<std::string> keys;
  const std::vector<std::string> known = key_names();
  for (std::size_t at = 0; at < run_change.size();) {
    const std::size_t comma = std::min(run_change.find(',', at), run_change.size());
    std::string key = run_change.substr(at, comma - at);
    key.erase(0, key.find_first_not_of(' '));
    key.erase(key.find_last_not_of(' ') + 1);
    at = comma + 1;
    if (key.empty()) continue;
    require<UsageError>(std::count(known.begin(), known.end(), key) > 0,
                        "run.change names the unknown key {}: did you mean {}?", key, nearest_key(key, known));
    require<UsageError>(key != "run.change", "run.change names itself: name the keys that are to change");
    require<UsageError>(fixed(key) == nullptr,
                        "run.change = {}: it is {}, and no resume can change it, nor any other of {}; start a new run "
                        "with another run.dir (run.warm_start = RUN takes the weights along)",
                        key, fixed(key) == nullptr ? "" : fixed(key)->why, fixed_keys());
    keys.push_back(key);
  }
  return keys;
}

ResumeChanges compare_recipes(const Recipe& before, const Recipe& now, const RunPoint& at) {
  ResumeChanges result;
  const std::vector<std::string> named = change_keys(now.run.change);
  const auto is_named = [&](const std::string& key) { return std::count(named.begin(), named.end(), key) > 0; };
  result.total_steps = total_steps(before, now, at);
  result.anneal_begins = now.train.anneal_from_step > 0 && now.train.anneal_from_step != before.train.anneal_from_step;
  if (result.anneal_begins) check_anneal(now, at);

  Recipe was = before, is = now;
  // A run's length is one thing, however it is given: steps.
  for (Recipe* r : {&was, &is}) r->train.tokens = 0;
  was.train.steps = before.total_steps();
  is.train.steps = result.total_steps;
  const bool length_named = is_named("train.steps") || is_named("train.tokens");
  // The same tokens in other batches are another number of steps.
  const bool length_follows =
      now.train.tokens > 0 && now.train.tokens == before.train.tokens && is_named("train.batch_sequences");
  std::vector<RecipeChange> changeable, never;
  std::vector<std::string> different;
  const std::vector<Field> old_fields = fields_of(was), new_fields = fields_of(is);
  for (std::size_t i = 0; i < new_fields.size(); ++i) {
    const Field& field = new_fields[i];
    RecipeChange change{field.name(), old_fields[i].values(), field.values(), field.is_list()};
    if (compared(change.key, change.before) == compared(change.key, change.now)) continue;
    different.push_back(change.key);
    const bool length = change.key == "train.steps";
    if (is_named(change.key) || (length && (length_named || length_follows)) ||
        (result.anneal_begins && is_for_anneal(change.key)))
      result.made.push_back(std::move(change));
    else if (!is_free(change.key, field.section(), now))
      (fixed(change.key) != nullptr ? never : changeable).push_back(std::move(change));
  }
  if (!changeable.empty() || !never.empty()) refuse(now, changeable, never, named);

  const auto differs = [&](const std::string& key) {
    return std::count(different.begin(), different.end(), key == "train.tokens" ? "train.steps" : key) > 0;
  };
  for (const std::string& key : named)
    if (!differs(key)) result.idle.push_back(key);
  result.data_order_continues = !differs("train.batch_sequences") && !differs("data.source");
  require<UsageError>(result.total_steps >= at.step || !differs("train.steps"),
                      "the run in {} is at step {} already, beyond its new last step {}: use train.steps = {} or more",
                      now.run.dir, at.step, result.total_steps, at.step);
  // The pools of moe.pool = label are a share of the experts for each source.
  require<UsageError>(!differs("data.source") || now.model.pool != PoolMode::Label,
                      "the run in {} has moe.pool = label: its sources share out the experts, so data.source cannot "
                      "change; start a new run with another run.dir",
                      now.run.dir);
  return result;
}

void check_resume(const Recipe& before, const Recipe& now) {
  RunPoint at;
  // Where the run is does not matter but for an anneal, which begins where its run ended.
  if (now.train.anneal_from_step > 0) at.step = before.total_steps(), at.tokens = at.step * before.tokens_per_step();
  compare_recipes(before, now, at);
}

nlohmann::json to_json(const RecipeChange& change, std::int64_t step) {
  const auto value = [&](const std::vector<std::string>& values) -> nlohmann::json {
    if (change.is_list) {
      auto list = nlohmann::ordered_json::array();
      for (const std::string& v : values) list.push_back(quoted_text(v));  // paths and labels are of any bytes
      return list;
    }
    const auto parsed = nlohmann::json::parse(values.front(), nullptr, false);
    return parsed.is_number() || parsed.is_boolean() ? parsed : nlohmann::json(values.front());
  };
  return {{"step", step}, {"key", change.key}, {"old", value(change.before)}, {"new", value(change.now)}};
}

nlohmann::json changes_of(const Manifest& manifest) {
  const auto found = manifest.extra.find("changes");
  return found != manifest.extra.end() && found->is_array() ? *found : nlohmann::json::array();
}

std::vector<std::string> change_lines(const nlohmann::json& records) {
  std::vector<std::string> lines;
  const auto text = [](const nlohmann::json& v) { return v.is_string() ? v.get<std::string>() : v.dump(); };
  if (records.is_array())
    for (const auto& r : records)
      if (r.is_object() && r.contains("key") && r.contains("old") && r.contains("new") && r.contains("step"))
        lines.push_back(
            fmt::format("step {}: {} {} -> {}", r["step"].dump(), text(r["key"]), text(r["old"]), text(r["new"])));
  return lines;
}

}  // namespace emox
