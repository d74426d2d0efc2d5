#include "launch/run/run_start.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "data/loader/identity.h"
#include "data/loader/start.h"
#include "launch/config/changes.h"
#include "launch/config/recipe_file.h"
#include "launch/config/unused_keys.h"
#include "launch/run/balance_group.h"
#include "launch/run/run_data.h"
#include "parallel/checkpoint/layout.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/core/quoted.h"
#include "runtime/files/strict_json.h"

namespace emox {
namespace {

constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max() / 2;

bool nearly_equal(double a, double b) { return std::abs(a - b) <= 1e-9 * std::max(std::abs(a), std::abs(b)); }

LoaderStart data_from(const nlohmann::json& extra) {
  LoaderStart start;
  if (!extra.contains("data_start")) return start;  // of an earlier version: the batch never changed
  const StrictJson data = StrictJson(extra, "extra").at("data_start");
  start.step = data.at("step").integer(0, kMost);
  start.sequences = data.at("sequences").integer(0, kMost);
  for (const StrictJson& s : data.at("sources").elements())
    start.sources.push_back(
        {unquoted_text(s.at("label").text()), s.at("order").integer(0, kMost), s.at("read").integer(0, kMost)});
  return start;
}

nlohmann::json to_json(const LoaderStart& start) {
  auto sources = nlohmann::json::array();
  for (const LoaderStart::Source& s : start.sources)
    sources.push_back({{"label", quoted_text(s.label)}, {"order", s.order}, {"read", s.read}});
  return {{"step", start.step}, {"sequences", start.sequences}, {"sources", sources}};
}

// The recipe that a resume counts by, of its own text and the checkpoint's.
class Resume {
 public:
  Resume(const Recipe& asked, const Manifest& found, const std::string& checkpoint, const ResumeFacts& facts)
      : before_(recipe_of(found, checkpoint)),
        asked_(asked),
        found_(found),
        rate_(facts.rate),
        ranks_(facts.ranks),
        replaced_(facts.replaced),
        held_out_replaced_(facts.held_out_replaced) {
    start_.step = found.step;
    start_.data = data_from(found.extra);
    start_.changes = changes_of(found);
  }

  RunStart plan() {
    start_.recipe = asked_;
    begin_with_the_anneals_rate();
    LoaderConfig read = loader_config(before_);
    read.start = start_.data;
    const std::int64_t length = before_.model.sequence_length;
    RunPoint at{found_.step, 0, start_.data.step, start_.data.sequences * length};
    at.tokens = at.base_tokens + (at.step - at.base_step) * before_.tokens_per_step();
    ResumeChanges changes = compare_recipes(before_, start_.recipe, at);
    if (ranks_ > 0) compare_balance_groups(changes);
    if (changes.anneal_begins) choose_peak(changes);
    if (!replaced_.empty()) note_other_text(changes);
    for (const std::string& label : held_out_replaced_) note_other_held_out(changes, label);
    if (!changes.data_order_continues)
      start_.data = continue_after(read, found_.step, loader_config(asked_).sources, replaced_);
    if (start_.data.step > 0) start_.recipe.train.steps = changes.total_steps, start_.recipe.train.tokens = 0;
    start_.recipe.run.change.clear();
    record(changes);
    say_new_rate(changes);
    return std::move(start_);
  }

 private:
  static Recipe recipe_of(const Manifest& found, const std::string& checkpoint) {
    require<UsageError>(!found.recipe.empty(),
                        "{} holds no recipe, so whether this one fits cannot be told: begin a new run with "
                        "--run.warm_start={} and another --run.dir",
                        checkpoint, checkpoint);
    return parse_recipe(found.recipe, checkpoint + "/manifest.json");
  }

  // Files of the run give the anneal's peak as its rate; the command that began it may give another number.
  void begin_with_the_anneals_rate() {
    const TrainConfig& was = before_.train;
    if (was.anneal_from_step == 0 || was.anneal_from_step != asked_.train.anneal_from_step) return;
    if (!found_.extra.contains("anneal_rate")) return;
    const nlohmann::json& given = found_.extra["anneal_rate"];
    if (!given.is_number()) StrictJson(given, "extra.anneal_rate").reject("a number");
    start_.anneal_rate = given.get<double>();
    if (is_named("train.learning_rate"))
      start_.anneal_rate.reset();
    else if (asked_.train.learning_rate == *start_.anneal_rate || rate_ == RateGiven::No)
      start_.recipe.train.learning_rate = was.learning_rate;
  }

  bool is_named(const char* key) const {
    const std::vector<std::string> named = change_keys(asked_.run.change);
    return std::count(named.begin(), named.end(), key) > 0;
  }

  void choose_peak(ResumeChanges& changes) {
    const std::int64_t step = found_.step;
    double& rate = start_.recipe.train.learning_rate;
    const double had = schedule_of(before_).learning_rate(step);
    const std::string had_text =
        fmt::format("{:.6g}, which the run had at step {} ({} from train.learning_rate = {})", had, step,
                    kScheduleNames[idx(before_.train.schedule)], before_.train.learning_rate);
    const bool told = !nearly_equal(rate, had) && (is_named("train.learning_rate") ||
                                                   (rate_ == RateGiven::Yes && rate != before_.train.learning_rate));
    require<UsageError>(told || had > 0,
                        "train.anneal_from_step = {}: the run in {} had the learning rate 0 at that step, from which "
                        "nothing can fall; give the anneal's with --train.learning_rate=X",
                        step, asked_.run.dir);
    start_.anneal_rate = rate;
    const std::int64_t last = changes.total_steps;
    start_.notes.push_back(
        told ? fmt::format("anneal: the rate falls from {:.6g}, the train.learning_rate of this recipe, to 0 at step "
                           "{}; not from {}",
                           rate, last, had_text)
             : fmt::format("anneal: the rate falls from {}, to 0 at step {}", had_text, last));
    if (!told && !nearly_equal(rate, had)) rate = had;
    // What the run's files give as its rate from now on.
    std::erase_if(changes.made, [](const RecipeChange& c) { return c.key == "train.learning_rate"; });
    if (rate != before_.train.learning_rate)
      changes.made.push_back(
          {"train.learning_rate", {fmt::format("{}", before_.train.learning_rate)}, {fmt::format("{}", rate)}});
  }

  void compare_balance_groups(ResumeChanges& changes) {
    const auto change = check_balance_groups(found_, before_, asked_, ranks_);
    if (!change) return;
    std::erase(changes.idle, "moe.balance_scope");
    start_.notes.push_back(
        fmt::format("changed at step {}: the balance loss sees the sequences of a step in groups, {}; "
                    "before, {}",
                    found_.step, change->now, change->before));
    start_.changes.push_back(
        {{"step", found_.step}, {"key", "moe.balance_scope"}, {"old", change->before}, {"new", change->now}});
    ++start_.new_changes;
  }

  // Under a label that stays, files with other text.
  void note_other_text(ResumeChanges& changes) {
    require(is_named("data.source"), "the text of {} has changed, which only run.change = data.source allows",
            fmt::join(replaced_, ", "));
    changes.data_order_continues = false;
    std::erase(changes.idle, "data.source");
    const auto listed = std::find_if(changes.made.begin(), changes.made.end(),
                                     [](const RecipeChange& c) { return c.key == "data.source"; });
    if (listed == changes.made.end())
      changes.made.push_back({"data.source", before_.data.source, asked_.data.source, true});
    start_.notes.push_back(
        fmt::format("other text than before under {}: read from its beginning", fmt::join(replaced_, ", ")));
  }

  // What the run is evaluated on: it reads its training text as before.
  void note_other_held_out(ResumeChanges& changes, const std::string& label) {
    require(is_named("data.source"), "the held-out text of {} has changed, which only run.change = data.source allows",
            label);
    std::erase(changes.idle, "data.source");
    const std::string what = fmt::format("held-out text of {}", quoted_text(label));
    start_.changes.push_back(
        {{"step", found_.step}, {"key", "data.source"}, {"old", what}, {"new", what + " replaced"}});
    ++start_.new_changes;
    start_.notes.push_back(
        fmt::format("changed at step {}: data.source: held-out text of {} replaced; evaluations "
                    "before and after this step are not of the same text",
                    found_.step, label));
  }

  void record(const ResumeChanges& changes) {
    for (const RecipeChange& change : changes.made) {
      start_.changes.push_back(emox::to_json(change, found_.step));
      ++start_.new_changes;
      start_.notes.push_back(fmt::format("changed at step {}: {} was {}, is {}", found_.step, change.key,
                                         fmt::join(change.before, " "), fmt::join(change.now, " ")));
    }
    for (const std::string& key : changes.idle)
      start_.notes.push_back(fmt::format("run.change names {}, which is as it was: nothing to change", key));
  }

  void say_new_rate(const ResumeChanges& changes) {
    const std::int64_t next = found_.step + 1;
    if (changes.made.empty() || next > start_.recipe.total_steps()) return;
    const double was = schedule_of(before_).learning_rate(next), is = schedule_of(start_.recipe).learning_rate(next);
    if (was != is)
      start_.notes.push_back(
          fmt::format("the learning rate of step {} is {:.6g}; without the change it would be {:.6g}", next, is, was));
  }

  const Recipe before_;
  const Recipe& asked_;
  const Manifest& found_;
  const RateGiven rate_;
  const int ranks_;
  const std::vector<std::string> replaced_, held_out_replaced_;
  RunStart start_;
};

}  // namespace

LoaderConfig loader_config(const Recipe& r) {
  LoaderConfig c;
  for (const std::string& s : r.data.source) c.sources.push_back(SourceSpec::parse(s));
  c.sequence_length = r.model.sequence_length;
  c.sequences_per_step = r.train.batch_sequences;
  c.vocab_size = r.model.vocab_size;
  c.token_width = token_width(r.data);
  c.seed = static_cast<std::uint64_t>(r.run.seed);
  return c;
}

StepConfig step_config(const Recipe& recipe) {
  const TrainConfig& t = recipe.train;
  return {.model = recipe.model,
          .batch_sequences = t.batch_sequences,
          .micro_batch_sequences = t.micro_batch_sequences,
          .micro_batch_memory = t.micro_batch_memory,
          .lm_z_weight = t.lm_z_weight,
          .adamw = {t.beta1, t.beta2, t.eps, t.weight_decay, t.clip_norm},
          .eos = recipe.data.eos_id(),
          .overlap_gradients = recipe.parallel.overlap_gradients,
          .overlap_weights = recipe.parallel.overlap_weights};
}

std::vector<SequenceInput> step_inputs(std::span<const Sequence> sequences, std::int64_t first) {
  std::vector<SequenceInput> inputs;
  for (const Sequence& s : sequences) inputs.push_back({s.tokens, {}, first++, s.label});
  return inputs;
}

Schedule schedule_of(const Recipe& r) {
  Schedule s;
  s.kind = r.train.schedule;
  s.peak = r.train.learning_rate;
  s.warmup_steps = r.train.warmup_steps;
  s.last_step = r.total_steps();
  s.min_ratio = r.train.min_lr_ratio;
  s.decay_steps = r.train.decay_steps;
  s.anneal_from_step = r.train.anneal_from_step;
  return s;
}

std::int64_t RunStart::tokens_after(std::int64_t until) const {
  return data.sequences * recipe.model.sequence_length + (until - data.step) * recipe.tokens_per_step();
}

nlohmann::json RunStart::to_extra() const {
  nlohmann::json extra = {{"data_start", to_json(data)}, {"changes", changes}};
  if (!identity.is_null()) extra[kDataKey] = identity;
  if (anneal_rate) extra["anneal_rate"] = *anneal_rate;
  return extra;
}

RunStart plan_start(const Recipe& recipe) {
  require<UsageError>(recipe.train.anneal_from_step == 0 || recipe.run.warm_start.empty(),
                      "run.warm_start begins at step 0, but train.anneal_from_step = {} goes on with a run of so many "
                      "steps: set it to 0, and train.steps to the steps of the anneal",
                      recipe.train.anneal_from_step);
  require<UsageError>(recipe.train.anneal_from_step == 0,
                      "train.anneal_from_step = {} goes on with a run that was trained to that step, but {} holds no "
                      "checkpoint: name that run's directory with --run.dir=DIR",
                      recipe.train.anneal_from_step, recipe.run.dir);
  RunStart start;
  start.recipe = recipe;
  start.recipe.run.change.clear();
  if (!recipe.run.change.empty())
    start.notes.push_back(fmt::format("run.change = {}: {} holds no checkpoint, so there is nothing to change",
                                      recipe.run.change, recipe.run.dir));
  for (std::string& key : unused_keys(start.recipe)) start.notes.push_back(std::move(key));
  return start;
}

RunStart plan_resume(const Recipe& recipe, const Manifest& found, const std::string& checkpoint,
                     const ResumeFacts& facts) {
  try {
    RunStart start = Resume(recipe, found, checkpoint, facts).plan();
    for (std::string& key : unused_keys(start.recipe)) start.notes.push_back(std::move(key));
    return start;
  } catch (const IoError& e) {
    fail<UsageError>("{}/manifest.json: {}", checkpoint, e.message());
  }
}

RunStart plan_from_newest(const Recipe& recipe, const std::filesystem::path& checkpoints) {
  for (const std::filesystem::path& path : list_checkpoints(checkpoints)) {
    Manifest manifest;
    try {
      manifest = read_manifest(path);
    } catch (const IoError&) {
      continue;  // named when it is to be loaded
    }
    return plan_resume(recipe, manifest, path.string());
  }
  return plan_start(recipe);
}

}  // namespace emox
