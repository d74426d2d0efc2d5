#include "launch/run/warm_start.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "launch/config/recipe_file.h"
#include "launch/run/find_checkpoint.h"
#include "launch/run/model_pieces.h"
#include "parallel/checkpoint/arrays.h"
#include "parallel/comm/together.h"
#include "runtime/core/error.h"
#include "runtime/files/strict_json.h"
#include "runtime/ops/basic.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

// Parameters are vectors and matrices.
Shape shape_of(const std::vector<std::int64_t>& extents) {
  return extents.size() == 1 ? Shape{extents[0]} : Shape{extents.at(0), extents.at(1)};
}
std::vector<std::int64_t> extents_of(const Shape& shape) {
  require<ShapeError>(shape.rank() == 1 || shape.rank() == 2, "a parameter of shape {}", shape.str());
  return shape.rank() == 1 ? std::vector{shape[0]} : std::vector{shape[0], shape[1]};
}

// The arrays of the whole model, on rank 0: it has all but some of the experts itself.
std::vector<WantedArray> wanted_arrays(Session& session, const LanguageModel& model, const ParameterShards& shards,
                                       bool bias, bool moments) {
  // Of the ranks that hold the same experts, one says so.
  const bool says_experts = shards.groups()[1].shards.rank() == 0;
  auto own = nlohmann::json::array();
  for (const NamedParameter& p : model.parameters().named())
    if (p.slot.group == ParameterGroup::Expert ? says_experts : session.root())
      own.push_back({p.name, extents_of(p.slot.shape)});
  std::vector<WantedArray> wanted;
  for (const std::string& text : gather_texts(session.comm(), own.dump()))
    for (const auto& array : nlohmann::json::parse(text)) {
      const Shape shape = shape_of(array.at(1).get<std::vector<std::int64_t>>());
      wanted.push_back({array.at(0), "weight", shape});
      if (!moments) continue;
      for (const char* role : {"exp_avg", "exp_avg_sq"}) wanted.push_back({array.at(0), role, shape});
    }
  if (bias)
    for (const CheckpointPiece& p : bias_pieces(model)) wanted.push_back({p.name, p.role, p.shape});
  return wanted;
}

// On rank 0.
void check_arrays(const Manifest& source, const fs::path& path, std::span<const WantedArray> wanted, bool bias) {
  std::vector<ManifestTensor> saved;
  for (const ManifestTensor& t : source.tensors)
    if (bias || !is_selection_bias(t)) saved.push_back(t);
  const auto others = describe_other_arrays(saved, wanted);
  require<UsageError>(
      others.empty(),
      "run.warm_start: the checkpoint {} does not fit the model of this recipe:\n  {}\nmake [model] and "
      "[moe] those of its run where they give shapes, or name another checkpoint",
      path.string(), fmt::join(others, "\n  "));
}

void say_what_changes(Log& log, const Manifest& source, const fs::path& path, const Recipe& recipe) {
  if (source.recipe.empty()) {
    log.info("its recipe is not known");
    return;
  }
  std::vector<std::string> changes;
  try {
    changes = list_changes(parse_recipe(source.recipe, (path / "manifest.json").string()), recipe);
  } catch (const UsageError& e) {
    log.warn("the recipe of {} cannot be compared with this one: {}", path.string(), e.message());
    return;
  }
  if (changes.empty())
    log.info("recipe: as there");
  else
    log.info("recipe, there -> here:\n  {}", fmt::join(changes, "\n  "));
}

}  // namespace

std::int64_t optimizer_steps(const Manifest& checkpoint) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max() / 2;
  for (const char* key : {"optimizer_step", "data_step"})
    if (checkpoint.extra.contains(key)) return StrictJson(checkpoint.extra, "extra").at(key).integer(0, kMost);
  return checkpoint.step;
}

void warm_start(Session& session, const Recipe& recipe, const LanguageModel& model, Optimizer& optimizer) {
  const std::string& name = recipe.run.warm_start;
  const bool moments = recipe.run.warm_start_state == WarmStartState::Optimizer;
  const bool here = !model.selection_bias().null();
  bool there = false;
  const auto pieces_for = [&](const FoundCheckpoint& found) {
    const auto has_moments = [](const ManifestTensor& t) { return t.role == "exp_avg"; };
    require<UsageError>(!moments || holds(session.comm(), found.manifest, has_moments),
                        "run.warm_start_state = optimizer, but {} holds no moments; use run.warm_start_state = weights",
                        found.path.string());
    there = holds(session.comm(), found.manifest, is_selection_bias);
    const bool bias = there && here;
    if (here && !there) ops::zero(session.ctx(), model.selection_bias());  // a damaged checkpoint may have been there
    const auto wanted = wanted_arrays(session, model, optimizer.shards(), bias, moments);
    on_root(session.comm(), [&] { check_arrays(found.manifest, found.path, wanted, bias); });
    std::vector<CheckpointPiece> pieces = owned_pieces(optimizer);  // of rounded weights, those they are rounded from
    if (!moments) std::erase_if(pieces, [](const CheckpointPiece& p) { return p.role != "weight"; });
    if (bias)
      for (CheckpointPiece& piece : bias_pieces(model)) pieces.push_back(std::move(piece));
    return pieces;
  };
  FoundCheckpoint found;
  try {
    found = load_found(session, name, pieces_for);
  } catch (const UsageError& e) {
    if (e.message().starts_with("run.warm_start")) throw;
    fail<UsageError>("run.warm_start = {}: {}", name, e.message());
  } catch (const IoError& e) {
    fail<UsageError>("run.warm_start = {}: {}", name, e.message());
  }
  optimizer.gather_weights(session.ctx());
  const Manifest& source = found.manifest;
  optimizer.set_steps_before(moments ? optimizer_steps(source) : 0);
  Log& log = session.log();
  log.info("warm start from {} (step {}): {}", found.path.string(), source.step,
           moments ? fmt::format("weights and moments, the optimizer goes on after {} steps", optimizer.steps_before())
                   : "weights; the optimizer begins anew");
  if (here && !there) log.info("it has no selection bias: that of this run begins at 0");
  if (there && !here) log.info("its selection bias is dropped: moe.balance is not bias here");
  say_what_changes(log, source, found.path, recipe);
}

}  // namespace emox
