#include "launch/analysis/study/cells.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <optional>

#include "launch/config/fields.h"
#include "launch/config/nearest.h"
#include "model/moe/pools.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

/// Every document and token has its pool, in all layers and steps.
void pool_everything(ModelConfig& m) {
  m.pool_free_share = 0, m.pool_free_tokens = 0;
  m.pool_from_step = 0, m.pool_until_step = 0, m.pool_from_layer = 0;
}

void make_standard(ModelConfig& m) {
  m.pool = PoolMode::Off;
  m.eval_pool = 0;
  pool_everything(m);  // nothing is left that a reader could take for pools
}

void make_smaller(ModelConfig& m, std::int64_t experts) {
  make_standard(m);
  m.num_experts = experts;
  m.top_k = std::min(m.top_k, experts);
}

void make_dense(Recipe& r) {
  make_standard(r.model);
  r.model.dense_ff = r.model.top_k * r.model.expert_ff;  // before they are gone
  r.model.num_experts = 0;
  r.parallel.expert_parallel = 1;
  r.parallel.placement = PlacementKind::Block;
}

void make_shared_routed(ModelConfig& m) {
  const bool unlimited = m.pool_max >= m.routed_experts();
  m.pool_max += unlimited ? m.shared_experts : 0;
  m.shared_experts = 0;
  m.pool_min = std::max(m.pool_min, m.routed_top_k());
  m.pool_size = std::max(m.pool_size, m.routed_top_k());
}

void apply(const std::string& model, Recipe& r) {
  ModelConfig& m = r.model;
  if (model == "standard") {
    make_standard(m);
  } else if (model == "dense") {
    make_dense(r);
  } else if (model == "quarter-experts" || model == "eighth-experts") {
    const auto kept = kept_numbers(m);
    const std::size_t which = model == "quarter-experts" ? 1 : 2;
    require<UsageError>(which < kept.size(), "emox study: {} experts are too few for the cell {}", m.num_experts,
                        model);
    make_smaller(m, kept[which]);
    r.parallel.placement = PlacementKind::Block;
    const std::int64_t ranks = r.parallel.expert_parallel;
    while (ranks != 0 &&  // auto fits by its making
           (r.parallel.expert_parallel > m.routed_experts() || ranks % r.parallel.expert_parallel != 0))
      --r.parallel.expert_parallel;
  } else if (model == "all-pooled") {
    pool_everything(m);
  } else if (model == "fixed-pool") {
    pool_everything(m);
    m.pool = PoolMode::Fixed;
    m.pool_size = std::max(m.routed_top_k(), (m.routed_experts() + 2) / 4);
  } else if (model == "quarter-free") {
    pool_everything(m);
    m.pool_free_share = 0.25;
  } else if (model == "free-tokens") {
    pool_everything(m);
    m.pool_free_tokens = 0.5;
  } else if (model == "local-balance") {
    m.balance_scope = BalanceScope::Local;
  } else if (model == "label-pools") {
    pool_everything(m);
    m.pool = PoolMode::Label;
  } else if (model == "no-shared") {
    make_shared_routed(m);
  }
}

void check_base(const Recipe& base) {
  require<UsageError>(base.model.is_moe() && base.model.pool != PoolMode::Off,
                      "emox study: the recipe is to be that of EMO, with moe.num_experts > 0 and moe.pool not off; the "
                      "standard MoE is made from it");
}

Field field_of(Recipe& recipe, const std::string& key) {
  for (const Field& field : fields_of(recipe))
    if (field.name() == key) return field;
  fail<UsageError>("unknown key {}: did you mean {}?", key, nearest_key(key, key_names()));
}

/// What a cell is called must still hold of it after its settings: two rows of one name would be compared otherwise.
/// `made`: as the name makes it.
void check_is_still(const std::string& model, Recipe made, Recipe r) {
  const std::vector<std::string> free{"moe.pool_free_share", "moe.pool_free_tokens", "moe.pool_from_step",
                                      "moe.pool_until_step", "moe.pool_from_layer"};
  std::vector<std::string> keys;
  if (model == "standard" || model == "quarter-experts" || model == "eighth-experts")
    keys = {"moe.pool", "moe.num_experts"};
  if (model == "dense") keys = {"moe.num_experts"};
  if (model == "all-pooled" || model == "fixed-pool" || model == "quarter-free" || model == "label-pools") keys = free;
  if (model == "fixed-pool" || model == "label-pools") keys.emplace_back("moe.pool");
  if (model == "local-balance") keys = {"moe.balance_scope"};
  if (model == "no-shared") keys = {"moe.shared_experts"};
  if (model == "free-tokens") keys = {"moe.pool_free_share"};
  const bool no_pools = made.model.pool != PoolMode::Off && r.model.pool == PoolMode::Off;
  if (no_pools) keys.emplace_back("moe.pool");
  if (model == "free-tokens" && r.model.pool_free_tokens == 0) keys.emplace_back("moe.pool_free_tokens");
  for (const std::string& key : keys) {
    const auto is = field_of(r, key).values();
    require<UsageError>(
        is == field_of(made, key).values(),
        "emox study: --set {}:{}={} makes another model of the cell {}: leave it out, or use another cell", model, key,
        is.front(), model);
  }
}

StudyCell make_cell(const Recipe& base, const std::string& model, std::int64_t seed, int ranks,
                    const CellOptions& options, const std::vector<CellSetting>& more = {}) {
  StudyCell cell{model, seed, base, {}, false, ""};
  Recipe& r = cell.recipe;
  apply(model, r);
  require<UsageError>(model == kCellModels[0] || !list_changes(base, r).empty(),
                      "emox study: with this recipe the cell {} would be the same as emo; leave it out with --cells",
                      model);
  const Recipe made = r;
  for (const auto& list : {options.settings, more})
    for (const CellSetting& s : list)
      if (s.model == model) field_of(r, s.key).set(s.value, fmt::format("--set {}:{}", s.model, s.key));
  check_is_still(model, made, r);
  const bool whole_step = ranks == 1 && r.train.micro_batch_sequences >= r.train.batch_sequences;
  require<UsageError>(model != "local-balance" || !whole_step,
                      "emox study: the cell local-balance on one rank with train.micro_batch_sequences = {} of {} "
                      "would balance over the whole step, as emo does; use more ranks or smaller micro-batches",
                      r.train.micro_batch_sequences, r.train.batch_sequences);
  r.run.seed = seed;
  r.run.name = fmt::format("{}-seed{}", model, seed);
  r.run.dir = (std::filesystem::path(base.run.dir) / "cells" / r.run.name).string();
  r.eval.final = true;
  r.validate(ranks);
  if (r.model.pool == PoolMode::Label)  // refused now, not when its turn comes
    (void)label_pools(r.model.routed_experts(), r.model.routed_top_k(),
                      static_cast<std::int64_t>(r.data.source.size()));
  // A smaller model is what the others' subsets are compared with; it has none of its own to compare.
  const bool whole = model == "dense" || model == "quarter-experts" || model == "eighth-experts";
  cell.plan = {whole ? std::vector<std::int64_t>{} : kept_numbers(r.model), true, options.chance_draws};
  return cell;
}

/// Nothing when the recipe does not have the cell and the caller only wants to know which those are.
std::optional<StudyCell> make_cell_if_any(const Recipe& base, const std::string& model, std::int64_t seed, int ranks,
                                          const CellOptions& options) {
  if (options.left_out == nullptr) return make_cell(base, model, seed, ranks, options);
  try {
    return make_cell(base, model, seed, ranks, options);
  } catch (const UsageError& e) {
    if (model == kCellModels[0]) throw;
    const std::string line = fmt::format("{}: {}", model, e.message());
    auto& lines = *options.left_out;
    if (std::find(lines.begin(), lines.end(), line) == lines.end()) lines.push_back(line);
    return std::nullopt;
  }
}

}  // namespace

std::vector<StudyCell> study_cells(const Recipe& base, const std::vector<std::string>& models, std::int64_t seeds,
                                   int ranks, const CellOptions& options) {
  check_base(base);
  require<UsageError>(
      base.data.eval_part == HeldOutPart::Report,
      "emox study: a study reports: data.eval_part = {} is for choosing settings, with --tune; leave it at report",
      base.data.eval_part_name());
  std::vector<StudyCell> cells;
  for (std::int64_t seed = base.run.seed; seed < base.run.seed + seeds; ++seed)
    for (const std::string& model : models)
      if (auto cell = make_cell_if_any(base, model, seed, ranks, options)) cells.push_back(std::move(*cell));
  return cells;
}

StudyCell rounding_repeat(const StudyCell& cell, int ranks) {
  StudyCell again = cell;
  again.repeat = true;
  TrainConfig& train = again.recipe.train;
  require<UsageError>(!again.recipe.model.is_moe() || again.recipe.model.balance_scope == BalanceScope::Step,
                      "emox study: --repeat-rounding computes the same in another order only under moe.balance_scope = "
                      "step, but it is {}",
                      kBalanceScopeNames[idx(again.recipe.model.balance_scope)]);
  const std::int64_t share = (train.batch_sequences + ranks - 1) / ranks;
  const std::int64_t cut = std::min(train.micro_batch_sequences, share);
  require<UsageError>(cut > 1,
                      "emox study: --repeat-rounding halves a rank's micro-batches, but they are of one sequence "
                      "(train.batch_sequences = {} on {} ranks, train.micro_batch_sequences = {}); use fewer ranks",
                      train.batch_sequences, ranks, train.micro_batch_sequences);
  train.micro_batch_sequences = cut / 2;
  again.recipe.run.name += "-repeat";
  again.recipe.run.dir += "-repeat";
  again.plan.every_selection = false;
  again.recipe.validate(ranks);
  return again;
}

std::vector<StudyCell> tuning_cells(const Recipe& base, const std::vector<std::string>& models, std::int64_t seeds,
                                    int ranks, const std::vector<TuneAxis>& axes, const CellOptions& options) {
  check_base(base);
  std::vector<std::vector<CellSetting>> combinations{{}};
  for (const TuneAxis& axis : axes) {
    std::vector<std::vector<CellSetting>> longer;
    for (const auto& combination : combinations)
      for (const std::string& value : axis.values) {
        longer.push_back(combination);
        longer.back().push_back({"", axis.key, value});
      }
    combinations = std::move(longer);
  }
  Recipe part = base;
  part.data.eval_part = HeldOutPart::Tune;
  std::vector<StudyCell> cells;
  for (std::int64_t seed = base.run.seed; seed < base.run.seed + seeds; ++seed)
    for (const std::string& model : models)
      for (auto combination : combinations) {
        for (CellSetting& s : combination) s.model = model;
        StudyCell cell = make_cell(part, model, seed, ranks, options, combination);
        for (const CellSetting& s : combination) {
          const std::string value = field_of(cell.recipe, s.key).values().front();  // 4e-3 and 0.004 are one
          cell.recipe.run.name += fmt::format("-{}-{}", s.key.substr(s.key.find('.') + 1), value);
          cell.settings += fmt::format("{}{}={}", cell.settings.empty() ? "" : " ", s.key, value);
        }
        cell.recipe.run.dir = (std::filesystem::path(base.run.dir) / "tuning" / cell.recipe.run.name).string();
        cell.recipe.validate(ranks);
        if (!cell.plan.keep.empty()) cell.plan.keep = {cell.plan.keep.back()};
        cell.plan.every_selection = false;
        const bool twice = std::any_of(cells.begin(), cells.end(),
                                       [&](const StudyCell& c) { return c.recipe.run.name == cell.recipe.run.name; });
        require<UsageError>(!twice, "emox study: --tune names {} of {} twice", cell.settings, model);
        cells.push_back(std::move(cell));
      }
  return cells;
}

std::vector<std::int64_t> kept_numbers(const ModelConfig& model) {
  std::vector<std::int64_t> numbers;
  for (const std::int64_t parts : {2, 4, 8}) {
    const std::int64_t keep = std::max((2 * model.num_experts + parts) / (2 * parts), model.shared_experts + 1);
    if (keep < (numbers.empty() ? model.num_experts : numbers.back())) numbers.push_back(keep);
  }
  return numbers;
}

}  // namespace emox
