// `emox eval`: held-out loss of a checkpoint, with all of its experts or with some.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdio>
#include <optional>
#include <utility>

#include "data/loader/heldout.h"
#include "launch/commands/command.h"
#include "launch/commands/loaded_model.h"
#include "launch/commands/on_ranks.h"
#include "launch/commands/selection_arguments.h"
#include "launch/modularity/report.h"
#include "launch/train/evaluator.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

constexpr const char* kCommand = "emox eval";

class Evaluator {
 public:
  Evaluator(Session& session, const std::string& where, const std::vector<std::string>& overrides)
      : session_(session), loaded_(session, where, overrides) {
    held_out_ = read_held_out(loaded_.sources, loaded_.recipe.data.eval_documents, *loaded_.tokenizer);
    require<UsageError>(!held_out_.sources.empty(),
                        "no source of {} has held-out documents ({}); `emox corpus` writes such "
                        "directories, name them with --data.source=LABEL:WEIGHT:PATH",
                        loaded_.path.string(), fmt::join(held_out_.skipped, "; "));
    for (const std::string& skipped : held_out_.skipped) session.log().warn("not evaluated: {}", skipped);
  }

  Evaluation all_experts() {
    if (loaded_.recipe.model.is_moe()) loaded_.model->keep_all_experts(session_.ctx());
    return run(held_out_.sources);
  }
  /// The loss and what the experts tell about topic and token.
  std::pair<Evaluation, Modularity> modularity() {
    HeldOutRouting routing(*loaded_.model, held_out_.sources);
    Evaluation e = run(held_out_.sources, routing.observer());
    return {std::move(e), routing.measure(session_.comm(), loaded_.manifest.step)};
  }
  Evaluation kept_experts(const ExpertSubset& subset, const std::string& source) {
    subset.check_model(loaded_.recipe.model, source);
    return run_with(subset, held_out_.sources);
  }
  /// Each domain with the experts that its own training documents choose.
  Evaluation experts_of_each_domain(const SelectionOptions& options) {
    std::optional<Evaluation> all;
    for (const HeldOut& domain : held_out_.sources) {
      const ExpertSubset subset = loaded_.select_for_domain(session_, loaded_.source(domain.label), options);
      Evaluation e = run_with(subset, {domain});
      if (all)
        all->domains.push_back(std::move(e.domains[0]));
      else
        all = std::move(e);
    }
    return *all;
  }

 private:
  Evaluation run_with(const ExpertSubset& subset, const std::vector<HeldOut>& domains) {
    loaded_.model->keep_experts(session_.ctx(), subset.routed);
    Evaluation e = run(domains);
    e.experts_kept = subset.mean_keep();
    return e;
  }
  Evaluation run(const std::vector<HeldOut>& domains, const PassObserver& observer = {}) {
    InferenceMemory& memory = *loaded_.memory;
    return evaluate(session_.ctx(), *loaded_.model, session_.comm(), domains, loaded_.tokenizer->eos(),
                    loaded_.manifest.step, memory.activations, memory.batch, memory.max_tokens, observer);
  }

  Session& session_;
  LoadedModel loaded_;
  HeldOutSet held_out_;
};

void print_modularity(const std::pair<Evaluation, Modularity>& result, bool json) {
  if (!json) {
    fmt::print("{}", result.second.to_text());
    return;
  }
  nlohmann::ordered_json whole = result.first.to_json();
  whole["modularity"] = result.second.to_json();
  fmt::print("{}\n", whole.dump());
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
  return on_ranks({}, 0, [&](Session& session) {
    Evaluator evaluator(session, a.positional[0], a.overrides);
    if (a.has("--modularity")) {
      const auto result = evaluator.modularity();
      if (session.root()) print_modularity(result, a.has("--json"));
      return static_cast<int>(kDone);
    }
    std::optional<Evaluation> some;
    if (subset) some = evaluator.kept_experts(*subset, a.value("--experts"));
    if (options) some = evaluator.experts_of_each_domain(*options);
    const Evaluation full = evaluator.all_experts();
    if (!session.root()) return static_cast<int>(kDone);
    if (a.has("--json")) {
      nlohmann::ordered_json json = (some ? *some : full).to_json();
      if (some) json["full"] = full.to_json();
      fmt::print("{}\n", json.dump());
    } else if (some) {
      fmt::print("with {} experts a layer{}:\n{}\nwith all {}:\n{}", some->experts_kept,
                 options ? ", chosen for each domain" : "", some->to_text(), full.experts_kept, full.to_text());
    } else {
      fmt::print("{}", full.to_text());
    }
    return static_cast<int>(kDone);
  });
}

}  // namespace emox
