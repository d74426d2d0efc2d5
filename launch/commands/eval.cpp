#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <optional>

#include "data/loader/heldout.h"
#include "data/tokenize/tokenizer.h"
#include "launch/commands/command.h"
#include "launch/commands/on_ranks.h"
#include "launch/config/recipe_file.h"
#include "launch/modularity/report.h"
#include "launch/train/evaluator.h"
#include "launch/train/find_checkpoint.h"
#include "launch/train/run_directory.h"
#include "launch/train/sharding.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

// The run's sharding as far as these ranks allow: any number of ranks can evaluate.
ParallelConfig parallel_for(const Recipe& recipe, int ranks) {
  ParallelConfig parallel = recipe.parallel;
  parallel.placement = PlacementKind::Block;
  if (parallel.dispatch == DispatchKind::Local) parallel.dispatch = DispatchKind::Flat;
  parallel.expert_parallel = std::min<std::int64_t>(parallel.expert_parallel, ranks);
  while (ranks % parallel.expert_parallel != 0) --parallel.expert_parallel;
  return parallel;
}

struct EvalOptions {
  bool json = false, modularity = false;
  std::vector<std::string> overrides;
};

int evaluate_checkpoint(Session& session, const fs::path& where, const EvalOptions& options) {
  const fs::path path = find_checkpoint(session, where).path;
  const Manifest manifest = read_manifest(path);
  const Recipe recipe = parse_recipe(manifest.recipe, (path / "manifest.json").string(), options.overrides);
  Context& ctx = session.ctx();
  Sharding sharding(session.comm(), recipe.model, parallel_for(recipe, session.comm().size()));
  LanguageModel model(recipe.model, ctx, false, sharding.experts());
  load_checkpoint(session.comm(), path, weight_pieces(model));
  std::vector<SourceSpec> sources;
  for (const std::string& s : recipe.data.source) sources.push_back(SourceSpec::parse(s));
  const auto tokenizer = make_tokenizer(recipe.data.tokenizer_name());
  const HeldOutSet held_out = read_held_out(sources, recipe.data.eval_documents, *tokenizer);
  require<UsageError>(!held_out.sources.empty(),
                      "no source of {} has held-out documents ({}); `emox corpus` writes such "
                      "directories, name them with --data.source=LABEL:WEIGHT:PATH",
                      path.string(), fmt::join(held_out.skipped, "; "));
  for (const std::string& skipped : held_out.skipped) session.log().warn("not evaluated: {}", skipped);

  const std::int64_t tokens = recipe.train.micro_batch_sequences * recipe.model.sequence_length;
  Arena measure = Arena::measuring(ctx.device);
  (void)model.reserve(measure, tokens);
  model.reserve_scratch(measure, tokens, ctx.threads);
  Arena arena(ctx.device, measure.peak());
  Activations activations = model.reserve(arena, tokens);
  model.reserve_scratch(arena, tokens, ctx.threads);
  DeviceBatch batch(ctx.device, tokens);
  std::optional<HeldOutRouting> routing;
  if (options.modularity) routing.emplace(model, held_out.sources);
  const Evaluation e = evaluate(ctx, model, session.comm(), held_out.sources, tokenizer->eos(), manifest.step,
                                activations, batch, tokens, routing ? routing->observer() : PassObserver{});
  const Modularity modularity = routing ? routing->measure(session.comm(), manifest.step) : Modularity{};
  if (session.root()) {
    nlohmann::ordered_json whole = e.to_json();
    if (routing) whole["modularity"] = modularity.to_json();
    if (options.json)
      fmt::print("{}\n", whole.dump());
    else
      fmt::print("{}", routing ? modularity.to_text() : e.to_text());
  }
  return kDone;
}

}  // namespace

int run_eval(const std::vector<std::string>& args) {
  const Arguments a = parse_args(args, {.command = "emox eval",
                                        .flags = {"--json", "--modularity"},
                                        .overrides = true,
                                        .min_positional = 1,
                                        .max_positional = 1,
                                        .positional = "RUN|CHECKPOINT"});
  return on_ranks({}, 0, [&](Session& session) {
    return evaluate_checkpoint(session, a.positional[0], {a.has("--json"), a.has("--modularity"), a.overrides});
  });
}

}  // namespace emox
