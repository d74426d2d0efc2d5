#include "launch/analysis/inference/loaded_model.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "launch/config/changes.h"
#include "launch/config/recipe_file.h"
#include "launch/run/find_checkpoint.h"
#include "launch/run/model_pieces.h"
#include "launch/run/run_data.h"
#include "launch/run/run_directory.h"
#include "launch/run/same_on_ranks.h"
#include "parallel/checkpoint/checkpoint.h"
#include "parallel/checkpoint/load_plan.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

// The run's sharding as far as these ranks allow: any number of ranks can evaluate.
ParallelConfig parallel_for(const Recipe& recipe, int ranks) {
  ParallelConfig parallel = recipe.parallel;
  parallel.placement = PlacementKind::Block;
  if (parallel.dispatch == DispatchKind::Local) parallel.dispatch = DispatchKind::Auto;
  if (parallel.expert_parallel == 0) return parallel;  // auto fits any number of ranks
  parallel.expert_parallel = std::min<std::int64_t>(parallel.expert_parallel, ranks);
  while (ranks % parallel.expert_parallel != 0) --parallel.expert_parallel;
  return parallel;
}

/// FNV-1a: the same label draws the same experts everywhere.
std::uint32_t hash_of(const std::string& label) {
  std::uint32_t hash = 2166136261U;
  for (const char c : label) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619U;
  return hash;
}

// Below it, float32 rounding on other ranks could choose another expert.
constexpr double kCloseChoice = 1e-5;

}  // namespace

LoadedModel::LoadedModel(Session& session, const std::filesystem::path& where,
                         const std::vector<std::string>& overrides) {
  std::unique_ptr<ParameterShards> shards;
  const auto pieces_for = [&](const FoundCheckpoint& found) {
    path = found.path;
    manifest = found.manifest;
    recipe = parse_recipe(manifest.recipe, (path / "manifest.json").string(), overrides);
    require_same(session.comm(), "the recipe", to_ini(recipe));
    for (const std::string& change : change_lines(changes_of(manifest)))
      session.log().info("the run was changed at {}", change);
    RunData data = find_data_of(session, recipe, path, manifest, {.train = false, .held_out = false});
    sources = std::move(data.sources);
    missing = std::move(data.missing);
    tokenizer = make_tokenizer(recipe.data.tokenizer_name());
    model.reset();
    sharding = std::make_unique<Sharding>(session.comm(), recipe.model, parallel_for(recipe, session.comm().size()));
    model = std::make_unique<LanguageModel>(recipe.model, session.ctx(), false, sharding->experts());
    shards = std::make_unique<ParameterShards>(model->parameters(), sharding->mesh());
    std::vector<CheckpointPiece> pieces = owned_pieces(*shards);
    for (CheckpointPiece& piece : bias_pieces(*model)) pieces.push_back(std::move(piece));
    return pieces;
  };
  try {
    load_found(session, where, pieces_for, &read);
  } catch (const MisfitError& e) {
    if (overrides.empty()) throw;
    fail<UsageError>("{}; leave out the keys that make another model of it", e.message());
  }
  shards->gather_weights();
  memory = std::make_unique<InferenceMemory>(session.ctx(), *model,
                                             recipe.train.micro_batch_sequences * recipe.model.sequence_length);
}

const SourceSpec& LoadedModel::source(const std::string& label) const {
  std::vector<std::string> labels;
  for (const SourceSpec& s : sources) {
    if (s.label == label) return s;
    labels.push_back(s.label);
  }
  fail<UsageError>("the run has no domain {}; it has {}", label, fmt::join(labels, ", "));
}

std::string LoadedModel::compare_held_out(Session& session) const {
  const DataParts parts{.train = false, .held_out = true};
  return compare_with_training(manifest, find_data_of(session, recipe, path, manifest, parts).identity, parts);
}

std::string LoadedModel::compare_training_text(Session& session, const SourceSpec& domain) const {
  const DataParts parts{.train = true, .held_out = false};
  Recipe of_domain = recipe;
  std::erase_if(of_domain.data.source,
                [&](const std::string& s) { return SourceSpec::parse(s).label != domain.label; });
  return compare_with_training(manifest, find_data_of(session, of_domain, path, manifest, parts).identity, parts);
}

ExpertSubset LoadedModel::select(Session& session, const Documents& documents, const SelectionOptions& options) {
  return select(session, documents, options, options.draw);
}

ExpertSubset LoadedModel::select(Session& session, const Documents& documents, const SelectionOptions& options,
                                 std::uint64_t stream) {
  const CalibrationText text{
      .sequences = calibration_windows(documents, tokenizer->eos(), recipe.model.sequence_length),
      .eos = tokenizer->eos()};
  require_same(session.comm(), "the text that chooses experts", digest(text.sequences));
  const SelectionRequest request{options.method, check_budgets(recipe.model, options.keep, "the experts to keep"),
                                 options.seed, stream};
  ExpertSubset subset = select_experts(session.ctx(), *model, session.comm(), *memory, text, request);
  if (options.method == SelectionMethod::Random)
    subset.provenance["draw"] = options.draw;
  else
    subset.provenance["documents"] = documents.size();
  subset.provenance["checkpoint"] = std::filesystem::absolute(path).lexically_normal().string();
  subset.provenance["step"] = manifest.step;
  subset.provenance["run"] = {{"name", recipe.run.name}, {"seed", recipe.run.seed}};
  const double gap = subset.provenance.value("smallest_gap", 1.0);
  if (gap < kCloseChoice)
    session.log().warn(
        "two experts' scores are only {:.1e} apart (relative): on another number of ranks, rounding could choose the "
        "other one",
        gap);
  return subset;
}

ExpertSubset LoadedModel::select_for_domain(Session& session, const SourceSpec& domain,
                                            const SelectionOptions& options) {
  Documents documents;
  if (options.method != SelectionMethod::Random)
    documents = read_calibration(domain, options.examples, options.seed, *tokenizer, token_width(recipe.data));
  const std::uint64_t stream = static_cast<std::uint64_t>(hash_of(domain.label)) << 32 | options.draw;
  ExpertSubset subset = select(session, documents, options, stream);
  subset.provenance["domain"] = domain.label;
  return subset;
}

}  // namespace emox
