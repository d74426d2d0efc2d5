#include "launch/inference/held_out_losses.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "launch/train/progress.h"
#include "launch/train/same_on_ranks.h"
#include "launch/train/signals.h"
#include "runtime/core/error.h"

namespace emox {

HeldOutLosses::HeldOutLosses(Session& session, LoadedModel& loaded)
    : session_(session),
      loaded_(loaded),
      held_out_(read_held_out(loaded.sources, loaded.recipe.data.eval_documents, *loaded.tokenizer,
                              kHeldOutParts[static_cast<std::size_t>(loaded.recipe.data.eval_part)])) {
  require_same_held_out(session.comm(), held_out_);
  require<UsageError>(!held_out_.sources.empty(),
                      "no source of {} has held-out documents ({}); `emox corpus` writes such directories, name them "
                      "with --data.source=LABEL:WEIGHT:PATH",
                      loaded_.path.string(), fmt::join(held_out_.skipped, "; "));
  for (const std::string& skipped : held_out_.skipped) session_.log().warn("not evaluated: {}", skipped);
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
  const EvaluationHooks hooks{observer, [] { return StopSignals::received() != 0; },
                              [&](std::int64_t done, std::int64_t of) { progress.show(done, of); }};
  return evaluate(session_.ctx(), *loaded_.model, session_.comm(), domains, loaded_.tokenizer->eos(),
                  loaded_.manifest.step, memory.activations, memory.batch, memory.max_tokens, hooks);
}

}  // namespace emox
