#include "launch/analysis/inference/held_out_losses.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "launch/run/progress.h"
#include "launch/run/run_data.h"
#include "launch/run/same_on_ranks.h"
#include "launch/run/signals.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {

HeldOutLosses::HeldOutLosses(Session& session, LoadedModel& loaded)
    : session_(session),
      loaded_(loaded),
      held_out_(read_held_out(loaded.sources, loaded.recipe.data.eval_documents, *loaded.tokenizer,
                              kHeldOutParts[idx(loaded.recipe.data.eval_part)], token_width(loaded.recipe.data))) {
  require_same_held_out(session.comm(), held_out_);
  std::vector<std::string> skipped = loaded.missing;  // says where it was looked for
  for (const std::string& line : held_out_.skipped)
    if (std::none_of(loaded.missing.begin(), loaded.missing.end(), [&](const std::string& m) {
          return m.starts_with("data.source " + line.substr(0, line.find(": ") + 2));
        }))
      skipped.push_back(line);
  require<UsageError>(!held_out_.sources.empty(),
                      "no source of {} has held-out documents ({}); `emox corpus` writes such directories, name them "
                      "with --data.source=LABEL:WEIGHT:PATH",
                      loaded_.path.string(), fmt::join(skipped, "; "));
  for (const std::string& line : skipped) session_.log().warn("not evaluated: {}", line);
  skipped_ = std::move(skipped);
  data_ = loaded_.compare_held_out(session_);
  if (data_ != kDataAsTrained) session_.log().warn("data {}", data_);
}

Evaluation HeldOutLosses::with_all() {
  if (loaded_.recipe.model.is_moe()) loaded_.model->keep_all_experts(session_.ctx());
  return run(held_out_.sources);
}

std::pair<Evaluation, Modularity> HeldOutLosses::modularity() {
  HeldOutRouting routing(*loaded_.model, held_out_.sources);
  Evaluation e = run(held_out_.sources, routing.observer());
  return {std::move(e), routing.measure(session_.comm(), loaded_.manifest.step)};
}

Evaluation HeldOutLosses::with(const ExpertSubset& subset, const std::string& source) {
  return with(subset, source, held_out_.sources);
}

Evaluation HeldOutLosses::with(const ExpertSubset& subset, const std::string& source, const std::string& domain) {
  const auto found = std::find_if(held_out_.sources.begin(), held_out_.sources.end(),
                                  [&](const HeldOut& h) { return h.label == domain; });
  require<UsageError>(found != held_out_.sources.end(), "the domain {} has no held-out documents", domain);
  return with(subset, source, {*found});
}

Evaluation HeldOutLosses::with_own_experts(const SelectionOptions& options) {
  std::optional<Evaluation> all;
  for (const HeldOut& domain : held_out_.sources)
    if (const std::string text = loaded_.compare_training_text(session_, loaded_.source(domain.label));
        text != kDataAsTrained) {
      session_.log().warn("experts of {} are chosen by training text that is {}", domain.label, text);
      if (data_ == kDataAsTrained) data_ = text;
    }
  for (const HeldOut& domain : held_out_.sources) {
    const ExpertSubset subset = loaded_.select_for_domain(session_, loaded_.source(domain.label), options);
    Evaluation e = with(subset, domain.label, {domain});
    if (all)
      all->domains.push_back(std::move(e.domains[0]));
    else
      all = std::move(e);
  }
  return *all;
}

Evaluation HeldOutLosses::with(const ExpertSubset& subset, const std::string& source,
                               const std::vector<HeldOut>& domains) {
  require_same(session_.comm(), "the subset " + source, subset.to_json().at("kept").dump());
  subset.check_model(loaded_.recipe.model, source);
  loaded_.model->keep_experts(session_.ctx(), subset.routed);
  Evaluation e = run(domains);
  e.experts_kept = subset.mean_keep();
  return e;
}

Evaluation HeldOutLosses::run(const std::vector<HeldOut>& domains, const PassObserver& observer) {
  InferenceMemory& memory = *loaded_.memory;
  EvaluationProgress progress("evaluation", session_.root());
  return evaluate(session_.ctx(), *loaded_.model, session_.comm(),
                  {.held_out = domains,
                   .eos = loaded_.tokenizer->eos(),
                   .step = loaded_.manifest.step,
                   .hooks = {.observer = observer,
                             .stop = [] { return StopSignals::received() != 0; },
                             .progress = [&](std::int64_t done, std::int64_t of) { progress.show(done, of); }}},
                  {memory.activations, memory.batch, memory.max_tokens});
}

}  // namespace emox
