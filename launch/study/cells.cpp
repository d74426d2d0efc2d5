#include "launch/study/cells.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "launch/config/nearest.h"
#include "model/moe/pools.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

void apply(const std::string& model, ModelConfig& m) {
  const std::int64_t routed = m.routed_experts();
  if (model == "standard") {
    m.pool = PoolMode::Off;
    m.eval_pool = 0;
  } else if (model == "fixed-pool") {
    m.pool = PoolMode::Fixed;
    m.pool_size = std::max(m.routed_top_k(), (routed + 2) / 4);
  } else if (model == "quarter-free") {
    m.pool_free_share = 0.25;
  } else if (model == "local-balance") {
    m.balance_scope = BalanceScope::Local;
  } else if (model == "label-pools") {
    m.pool = PoolMode::Label;
    m.pool_free_share = 0, m.pool_free_tokens = 0, m.pool_from_step = 0, m.pool_until_step = 0, m.pool_from_layer = 0;
  } else if (model == "no-shared") {
    const bool unlimited = m.pool_max >= routed;
    m.pool_max += unlimited ? m.shared_experts : 0;
    m.shared_experts = 0;
    m.pool_min = std::max(m.pool_min, m.routed_top_k());
    m.pool_size = std::max(m.pool_size, m.routed_top_k());
  }
}

void check_base(const Recipe& base) {
  require<UsageError>(base.model.is_moe() && base.model.pool != PoolMode::Off,
                      "emox study: the recipe is to be that of EMO, with moe.num_experts > 0 and moe.pool not off; the "
                      "standard MoE is made from it");
}

}  // namespace

std::vector<std::string> parse_cells(const std::string& text) {
  const std::vector<std::string> known(std::begin(kCellModels), std::end(kCellModels));
  if (text == "all") return known;
  std::vector<std::string> models;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string name = text.substr(begin, end - begin);
    begin = end + 1;
    require<UsageError>(std::find(known.begin(), known.end(), name) != known.end(),
                        "emox study: --cells={}: there is no cell '{}': did you mean {}?", text, name,
                        nearest(name, known));
    require<UsageError>(std::find(models.begin(), models.end(), name) == models.end(),
                        "emox study: --cells={}: {} stands there twice", text, name);
    models.push_back(name);
  }
  return models;
}

std::vector<StudyCell> study_cells(const Recipe& base, const std::vector<std::string>& models, std::int64_t seeds,
                                   int ranks) {
  check_base(base);
  std::vector<StudyCell> cells;
  for (std::int64_t seed = base.run.seed; seed < base.run.seed + seeds; ++seed)
    for (const std::string& model : models) {
      StudyCell cell{model, seed, base};
      Recipe& r = cell.recipe;
      apply(model, r.model);
      require<UsageError>(
          model == kCellModels[0] || !list_changes(base, r).empty(),
          "emox study: with this recipe the cell {} would be the same as emo; leave it out with --cells", model);
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
      cells.push_back(std::move(cell));
    }
  return cells;
}

}  // namespace emox
