#include "launch/run/run_evaluations.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "data/tokenize/tokenizer.h"
#include "launch/run/evaluator.h"
#include "launch/run/progress.h"
#include "launch/run/run_data.h"
#include "launch/run/same_on_ranks.h"
#include "parallel/comm/progress.h"
#include "parallel/comm/together.h"
#include "runtime/core/idx.h"

namespace emox {

RunEvaluations::RunEvaluations(Session& session, const Recipe& recipe, const RunDirectory& directory,
                               const std::vector<SourceSpec>& sources, MetricsSink* lines)
    : s_(session), recipe_(recipe), directory_(directory), lines_(lines) {
  if (!recipe.eval.final && recipe.eval.every_steps == 0) return;
  const IoPhase io(s_.comm());
  held_out_ = read_held_out(sources, recipe.data.eval_documents, *make_tokenizer(recipe.data.tokenizer_name()),
                            kHeldOutParts[idx(recipe.data.eval_part)], token_width(recipe.data));
  require_same_held_out(s_.comm(), held_out_);
  for (const std::string& skipped : held_out_.skipped) s_.log().warn("not evaluated: {}", skipped);
  for (const HeldOut& source : held_out_.sources)
    if (source.documents.empty())
      s_.log().warn("{} has no held-out tokens: it has no loss, and is not in the means", source.label);
}

bool RunEvaluations::due(std::int64_t step) const {
  if (step == 0 || held_out_.sources.empty()) return false;
  if (step == recipe_.total_steps() && recipe_.eval.final) return true;
  return recipe_.eval.every_steps > 0 && step % recipe_.eval.every_steps == 0;
}

bool RunEvaluations::missing(std::int64_t step) const {
  if (!due(step)) return false;
  return root_says(s_.comm(), s_.root() && !directory_.evaluation_after(step));
}

bool RunEvaluations::evaluate_after(std::int64_t step, LanguageModel& model, TrainingStep& memory,
                                    const StopRequest& stop) {
  Evaluation e;
  try {
    EvaluationProgress progress(fmt::format("evaluation after step {}", step), s_.root());
    e = evaluate(s_.ctx(), model, s_.comm(),
                 {.held_out = held_out_.sources,
                  .eos = recipe_.data.eos_id(),
                  .step = step,
                  .hooks = {.stop = [&] { return stop.here(); },
                            .progress = [&](std::int64_t done, std::int64_t of) { progress.show(done, of); }}},
                 {memory.spare_activations(), memory.spare_batch(), memory.max_tokens()});
  } catch (const EvaluationStopped&) {
    return false;
  }
  on_root(s_.comm(), [&] {
    auto line = e.to_json();
    line["part"] = recipe_.data.eval_part_name();
    if (!held_out_.skipped.empty()) line["not_evaluated"] = held_out_.skipped;
    lines_->write(line);
  });
  const double loss = e.mean_loss(), bits = e.mean_bits_per_byte();
  if (step == recipe_.total_steps())
    s_.log().info("{}", e.to_text());
  else if (e.without_text().size() == e.domains.size())
    s_.log().info("after step {} there is no held-out text to score", step);
  else
    s_.log().info("held-out loss after step {}: {:.4f} nats/token{}", step, loss,
                  std::isnan(bits) ? "" : fmt::format(", {:.4f} bits/byte", bits));
  return true;
}

}  // namespace emox
