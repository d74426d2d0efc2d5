// Which cells a study has, what they are called, and which are tuned.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "launch/analysis/study/cells.h"
#include "launch/analysis/study/tune.h"
#include "model/transformer/flops.h"
#include "model/transformer/language_model.h"
#include "model/transformer/parameter_count.h"
#include "runtime/core/error.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox {
namespace {

using Names = std::vector<std::string>;

Recipe base_recipe() {
  Recipe r = test::tiny_recipe({"a:1:a", "b:1:b"});
  r.run.name = "tiny", r.run.dir = "runs/s", r.run.seed = 4, r.model.pool_max = r.model.routed_experts();
  return r;
}

TEST(StudyCells, AreNamedOnTheCommandLine) {
  EXPECT_EQ(parse_cells("standard,emo"), (Names{"standard", "emo"}));
  EXPECT_EQ(parse_cells("fewer-experts"), (Names{"quarter-experts", "eighth-experts"}));
  EXPECT_EQ(parse_cells("all").size(), std::size(kCellModels));
  for (const auto& [text, part] :
       {std::pair{"emo,standrad", "did you mean standard?"}, std::pair{"emo,emo", "emo stands there twice"},
        std::pair{"", "there is no cell ''"}, std::pair{"emo,", "there is no cell ''"}}) {
    try {
      (void)parse_cells(text);
      ADD_FAILURE() << text;
    } catch (const UsageError& e) {
      EXPECT_NE(e.message().find(part), std::string::npos) << e.message();
    }
  }
}

/// Changes of [model], [moe] and [train] against the cell emo.
Names changes_of(const StudyCell& cell, const Recipe& base) {
  Recipe emo = base;
  emo.run.seed = cell.seed, emo.eval.final = true;
  Names found = list_changes(emo, cell.recipe);
  std::sort(found.begin(), found.end());
  return found;
}

TEST(StudyCells, DifferInTheirExpertsOnly) {
  Recipe base = base_recipe();
  base.model.eval_pool = 7;
  const auto cells = study_cells(
      base,
      {"emo", "standard", "fixed-pool", "quarter-free", "free-tokens", "label-pools", "local-balance", "no-shared"}, 2,
      3);
  ASSERT_EQ(cells.size(), 16U);
  EXPECT_EQ(cells[0].recipe.run.dir, "runs/s/cells/emo-seed4");
  EXPECT_EQ(cells[9].recipe.run.name, "standard-seed5");
  const std::map<std::string, Names> changes{
      {"emo", {}},
      {"standard", {"moe.eval_pool: 7 -> 0", "moe.pool: uniform -> off"}},
      {"fixed-pool", {"moe.pool: uniform -> fixed", "moe.pool_size: 4 -> 2"}},
      {"quarter-free", {"moe.pool_free_share: 0 -> 0.25"}},
      {"free-tokens", {"moe.pool_free_tokens: 0 -> 0.5"}},
      {"local-balance", {"moe.balance_scope: step -> local"}},
      {"label-pools", {"moe.pool: uniform -> label"}},
      {"no-shared", {"moe.pool_max: 8 -> 9", "moe.pool_min: 2 -> 3", "moe.shared_experts: 1 -> 0"}}};
  for (const StudyCell& cell : cells) {
    EXPECT_EQ(changes_of(cell, base), changes.at(cell.model)) << cell.recipe.run.name;
    const bool shared = cell.model != "no-shared";
    EXPECT_EQ(cell.plan.keep, (shared ? std::vector<std::int64_t>{5, 2} : std::vector<std::int64_t>{5, 2, 1}));
  }
}

// An ablation sets every key of the pools that it means, whatever the recipe has.
TEST(StudyCells, DoNotInheritWhatFreesPools) {
  Recipe base = base_recipe();
  base.model.pool_free_share = 0.75, base.model.pool_free_tokens = 0.1;
  base.model.pool_from_step = 3, base.model.pool_until_step = 40, base.model.pool_from_layer = 1;
  for (const StudyCell& cell : study_cells(base,
                                           {"standard", "dense", "quarter-experts", "all-pooled", "fixed-pool",
                                            "quarter-free", "free-tokens", "label-pools"},
                                           1, 1)) {
    const ModelConfig& m = cell.recipe.model;
    EXPECT_EQ(m.pool_free_share, cell.model == "quarter-free" ? 0.25 : 0) << cell.model;
    EXPECT_EQ(m.pool_free_tokens, cell.model == "free-tokens" ? 0.5 : 0) << cell.model;
    EXPECT_EQ(m.pool_from_step + m.pool_until_step + m.pool_from_layer, 0) << cell.model;
  }
  const Recipe no_shared = study_cells(base, {"no-shared"}, 1, 1)[0].recipe;
  EXPECT_EQ(no_shared.model.pool_free_share, 0.75);
}

TEST(StudyCells, AreCalledWhatTheyAre) {
  Recipe base = base_recipe();
  const auto label = [&](const std::string& model) {
    return model_label(model, study_cells(base, {model}, 1, 3)[0].recipe);
  };
  EXPECT_EQ(label("emo"), "EMO");
  EXPECT_EQ(label("standard"), "standard MoE");
  EXPECT_EQ(label("dense"), "dense");
  EXPECT_EQ(label("quarter-experts"), "standard MoE of 2 experts");
  EXPECT_EQ(label("free-tokens"), "EMO, 50 % of tokens free");
  EXPECT_EQ(label("label-pools"), "EMO, pools by label");
  base.model.pool_free_share = 0.75;
  EXPECT_EQ(label("emo"), "EMO, 75 % of documents free");
  EXPECT_EQ(label("fixed-pool"), "EMO, pools of 2");
  EXPECT_EQ(label("no-shared"), "EMO, no shared expert, 75 % of documents free");
  EXPECT_EQ(label("all-pooled"), "EMO");
  base.model.pool_from_layer = 1;
  EXPECT_EQ(label("local-balance"), "EMO, local balance, 75 % of documents free, pools from layer 1");
}

// A recipe that shares the experts out by itself: every cell runs on as many ranks as the batch allows.
TEST(StudyCells, RunWithAutoOnAnyNumberOfRanks) {
  Recipe base = base_recipe();
  base.model.num_experts = 33, base.model.top_k = 4, base.model.pool_max = 32, base.model.pool_min = 3;
  base.parallel.expert_parallel = 0;
  for (int ranks = 1; ranks <= 12; ++ranks)
    for (const StudyCell& cell : study_cells(base, parse_cells("emo,dense,fewer-experts"), 1, ranks))
      EXPECT_NO_THROW(cell.recipe.validate(ranks)) << cell.model << " on " << ranks;
}

// The dense model does the work of the standard MoE's token, less the router; the smaller MoEs, too, with the memory of
// a subset. Counted from the parameters that the models have.
TEST(StudyCells, BaselinesMatchInWorkAndMemory) {
  Recipe base = base_recipe();
  base.model.num_experts = 33, base.model.top_k = 4, base.model.pool_max = 32, base.model.pool_min = 3;
  Context ctx;
  std::map<std::string, ModelConfig> models;
  for (const StudyCell& cell : study_cells(base, parse_cells("standard,dense,fewer-experts"), 1, 2)) {
    const ModelConfig& m = models[cell.model] = cell.recipe.model;
    const LanguageModel model(m, ctx, false);
    std::int64_t total = 0, experts = 0;
    for (const NamedParameter& p : model.parameters().named()) {
      total += p.slot.shape.numel();
      if (p.name.find(".mlp.experts.") != std::string::npos) experts += p.slot.shape.numel();
    }
    const ParameterCount count = count_parameters(m);
    EXPECT_EQ(count.total, total) << cell.model;
    const std::int64_t unused = m.is_moe() ? experts / m.num_experts * (m.num_experts - m.top_k) : 0;
    EXPECT_EQ(count.active, total - unused) << cell.model;
    EXPECT_EQ(cell.plan.keep.empty(), cell.model != "standard") << cell.model;
  }
  const auto count = [&](const char* model) { return count_parameters(models.at(model)); };
  const std::int32_t segments[] = {0, 64};
  const auto flops = [&](const char* model) { return step_flops(models.at(model), 64, segments); };
  const std::int64_t d = base.model.d_model, layers = base.model.layers;
  EXPECT_EQ(count("dense").active_feed_forward, count("standard").active_feed_forward);
  EXPECT_EQ(count("dense").active, count("standard").active - layers * d * 33);
  EXPECT_EQ(count("dense").total, count("dense").active);
  EXPECT_EQ(flops("dense"), flops("standard") - 6.0 * 64 * static_cast<double>(layers * d * 32));
  for (const auto& [model, experts] : {std::pair{"quarter-experts", 8}, std::pair{"eighth-experts", 4}}) {
    EXPECT_EQ(models.at(model).num_experts, experts);
    EXPECT_EQ(count(model).active_feed_forward, count("standard").active_feed_forward);
    EXPECT_EQ(count("standard").total - count(model).total,
              layers * (33 - experts) * (3 * d * base.model.expert_ff + d));
  }
}

TEST(StudyCells, ModelsMayHaveTheirOwnValues) {
  const auto settings = parse_settings({"standard,dense:train.learning_rate=16e-3", "emo:moe.pool_max=6"});
  ASSERT_EQ(settings.size(), 3U);
  const auto cells = study_cells(base_recipe(), {"emo", "standard", "fixed-pool"}, 1, 3, {settings});
  EXPECT_EQ(changes_of(cells[0], base_recipe()), (Names{"moe.pool_max: 8 -> 6"}));
  EXPECT_EQ(cells[1].recipe.train.learning_rate, 0.016);
  EXPECT_EQ(cells[2].recipe.train.learning_rate, base_recipe().train.learning_rate);
  const auto refused = [](const std::vector<std::string>& texts, const std::string& part) {
    try {
      (void)study_cells(base_recipe(), {"emo", "standard"}, 1, 1, {parse_settings(texts)});
      ADD_FAILURE() << texts[0];
    } catch (const UsageError& e) {
      EXPECT_NE(e.message().find(part), std::string::npos) << e.message();
    }
  };
  refused({"train.learning_rate=1"}, "expected MODEL:KEY=VALUE");
  refused({"standrad:train.steps=1"}, "did you mean standard?");
  refused({"emo:train.learnin_rate=1"}, "did you mean train.learning_rate?");
  refused({"emo:data.source=a:1:b"}, "data.source is the same for all models of a study");
  refused({"emo:train.steps=4", "emo,standard:train.steps=5"}, "train.steps of emo has been set already");
  refused({"emo:train.learning_rate=fast"}, "--set emo:train.learning_rate");
  refused({"emo:train.learning_rate=-1"}, "0 to 10");
  refused({"standard:moe.pool=uniform"}, "--set standard:moe.pool=uniform makes another model of the cell standard");
  refused({"emo:moe.pool=off"}, "--set emo:moe.pool=off makes another model");
  refused({"standard:moe.num_experts=0"}, "--set standard:moe.num_experts=0 makes another model");
  const auto refused_of = [](const std::string& cell, const std::string& setting) {
    EXPECT_THROW((void)study_cells(base_recipe(), {"emo", cell}, 1, 3, {parse_settings({cell + ":" + setting})}),
                 UsageError)
        << cell << " " << setting;
  };
  refused_of("quarter-experts", "moe.num_experts=9");
  refused_of("free-tokens", "moe.pool_free_tokens=0");
  refused_of("quarter-free", "moe.pool_free_share=0.5");
  refused_of("fixed-pool", "moe.pool=uniform");
  refused_of("local-balance", "moe.balance_scope=step");
  refused_of("no-shared", "moe.shared_experts=1");
  EXPECT_EQ(study_cells(base_recipe(), {"fixed-pool"}, 1, 3, {parse_settings({"fixed-pool:moe.pool_size=3"})})[0]
                .recipe.model.pool_size,
            3);
}

TEST(StudyCells, AllAreThoseThatTheRecipeHas) {
  std::vector<std::string> left_out;
  CellOptions options;
  options.left_out = &left_out;
  const auto cells = study_cells(base_recipe(), parse_cells("all"), 2, 1, options);
  Names names;
  for (const StudyCell& cell : cells) names.push_back(cell.model);
  EXPECT_EQ(names.size(), 18U);
  ASSERT_EQ(left_out.size(), 3U);  // once each, not once a seed
  EXPECT_EQ(left_out[0], "eighth-experts: emox study: 9 experts are too few for the cell eighth-experts");
  EXPECT_TRUE(left_out[1].starts_with("all-pooled: ")) << left_out[1];
  EXPECT_TRUE(left_out[2].starts_with("local-balance: ")) << left_out[2];
}

// The same computation in another order of its sums, or an error.
TEST(StudyCells, ARepeatDiffersInRoundingOnly) {
  Recipe base = base_recipe();
  const StudyCell cell = study_cells(base, {"standard"}, 1, 2)[0], again = rounding_repeat(cell, 2);
  EXPECT_EQ(again.recipe.run.name, "standard-seed4-repeat");
  EXPECT_TRUE(again.recipe.run.dir.ends_with("/standard-seed4-repeat"));
  EXPECT_EQ(list_changes(cell.recipe, again.recipe), (Names{"train.micro_batch_sequences: 12 -> 3"}));
  check_resume(cell.recipe, again.recipe);  // nothing that a resume refuses: the result is the same but for rounding
  base.model.balance_scope = BalanceScope::Local;
  EXPECT_THROW((void)rounding_repeat(study_cells(base, {"emo"}, 1, 2)[0], 2), UsageError);
  base = base_recipe(), base.train.micro_batch_sequences = 1;
  EXPECT_THROW((void)rounding_repeat(study_cells(base, {"emo"}, 1, 2)[0], 2), UsageError);
}

TEST(StudyTuning, EveryModelWithEveryCombinationOnDocumentsThatNoReportReads) {
  const auto axes = parse_tune({"train.learning_rate=1e-3,0.002", "moe.balance_weight=0.1,0.02"});
  const auto cells = tuning_cells(base_recipe(), {"emo", "standard"}, 1, 1, axes);
  ASSERT_EQ(cells.size(), 8U);
  EXPECT_EQ(cells[1].settings, "train.learning_rate=0.001 moe.balance_weight=0.02");
  EXPECT_EQ(cells[1].recipe.run.dir, "runs/s/tuning/emo-seed4-learning_rate-0.001-balance_weight-0.02");
  EXPECT_EQ(cells[6].model + ": " + cells[6].settings, "standard: train.learning_rate=0.002 moe.balance_weight=0.1");
  std::set<std::string> directories;
  for (const StudyCell& cell : cells) {
    EXPECT_EQ(cell.recipe.data.eval_part, HeldOutPart::Tune);
    EXPECT_EQ(cell.plan.keep, (std::vector<std::int64_t>{2}));
    EXPECT_FALSE(cell.plan.every_selection);
    directories.insert(cell.recipe.run.dir);
  }
  EXPECT_EQ(directories.size(), 8U);
  const auto refused = [](const std::vector<std::string>& texts, const std::string& part) {
    try {
      (void)tuning_cells(base_recipe(), {"emo"}, 1, 1, parse_tune(texts));
      ADD_FAILURE() << texts[0];
    } catch (const UsageError& e) {
      EXPECT_NE(e.message().find(part), std::string::npos) << e.message();
    }
  };
  refused({"train.learning_rate"}, "expected KEY=VALUE,VALUE");
  refused({"train.learning_rate=0.001,1e-3"}, "names train.learning_rate=0.001 of emo twice");
  refused({"train.lerning_rate=1"}, "did you mean train.learning_rate?");
  refused({"data.eval_documents=1"}, "is the same for all models");
  refused({"train.steps=4", "train.steps=5"}, "a --tune of train.steps already");
  Recipe base = base_recipe();
  base.data.eval_part = HeldOutPart::Tune;
  EXPECT_THROW((void)study_cells(base, {"emo"}, 1, 1), UsageError);  // a report of what settings were chosen by
}

TEST(StudyTuning, TheTableHasTheBestFirst) {
  const std::vector<TuneRow> rows{{"emo", 1, "train.learning_rate=0.004", 50, 1.5, 8, 0.25},
                                  {"emo", 2, "train.learning_rate=0.004", 50, 1.7, 8, 0.35},
                                  {"emo", 1, "train.learning_rate=0.008", 50, 1.55, 8, 0.1},
                                  {"dense", 1, "a,b=1", 50, 1.0 / 3, 0, 0}};
  const std::string text = write_tune(rows);
  EXPECT_TRUE(text.starts_with("model,seed,settings,steps,loss,experts_kept,rise\n")) << text;
  const auto read = read_tune(text, "tune.csv");
  ASSERT_EQ(read.size(), 4U);
  EXPECT_EQ(read[3].settings, "a,b=1");
  EXPECT_EQ(read[3].loss, 1.0 / 3);
  EXPECT_EQ(read[3].experts_kept, 0);
  EXPECT_THROW((void)read_tune("a,b\n", "tune.csv"), UsageError);
  const std::string table = tune_summary(rows);
  const auto worse = table.find("1.6000   +0.3000 (8)  50 steps, 2 seed(s): train.learning_rate=0.004");
  const auto best = table.find("1.5500   +0.1000 (8)  50 steps, 1 seed(s): train.learning_rate=0.008");
  EXPECT_LT(best, worse) << table;
  EXPECT_NE(worse, std::string::npos) << table;
  EXPECT_NE(table.find("0.3333             -  50 steps"), std::string::npos) << table;
}

TEST(StudyCells, KeepHalfAQuarterAndAnEighth) {
  ModelConfig m;
  m.shared_experts = 1;
  const auto kept = [&](std::int64_t experts) { return m.num_experts = experts, kept_numbers(m); };
  using Numbers = std::vector<std::int64_t>;
  EXPECT_EQ(kept(64), (Numbers{32, 16, 8}));
  EXPECT_EQ(kept(128), (Numbers{64, 32, 16}));
  EXPECT_EQ(kept(20), (Numbers{10, 5, 3}));
  EXPECT_EQ(kept(9), (Numbers{5, 2}));
  EXPECT_EQ(kept(2), (Numbers{}));
  m.shared_experts = 2;
  EXPECT_EQ(kept(16), (Numbers{8, 4, 3}));
}

TEST(StudyCells, StartFromTheSameValues) {
  const auto cells =
      study_cells(base_recipe(), {"emo", "standard", "fixed-pool", "label-pools", "no-shared", "free-tokens"}, 1, 3);
  Context ctx;
  std::vector<std::map<std::string, std::vector<float>>> models;
  for (const StudyCell& cell : cells) {
    LanguageModel model(cell.recipe.model, ctx, false);
    model.initialize(ctx, static_cast<std::uint64_t>(cell.recipe.run.seed));
    auto& values = models.emplace_back();
    for (const NamedParameter& p : model.parameters().named())
      values[p.name] = test::values_of<float>(model.parameters().weight(p.slot));
  }
  for (std::size_t i = 1; i < models.size(); ++i) {
    std::size_t compared = 0;
    for (const auto& [name, values] : models[i])
      if (const auto same = models[0].find(name); same != models[0].end() && same->second.size() == values.size()) {
        EXPECT_EQ(values, same->second) << cells[i].model << ": " << name;
        ++compared;
      }
    EXPECT_GE(compared, models[0].size() * 9 / 10) << cells[i].model;
  }
}

TEST(StudyCells, RefuseWhatCannotBeCompared) {
  const auto message = [](const Recipe& r, const char* model) -> std::string {
    try {
      (void)study_cells(r, {model}, 1, 1);
    } catch (const UsageError& e) {
      return e.message();
    }
    return "(accepted)";
  };
  Recipe r = base_recipe();
  r.train.micro_batch_sequences = r.train.batch_sequences;
  EXPECT_NE(message(r, "local-balance").find("local-balance on one rank"), std::string::npos);
  r.model.pool = PoolMode::Off;
  EXPECT_NE(message(r, "emo").find("moe.pool not off"), std::string::npos);
  r = base_recipe();
  r.model.pool = PoolMode::Label;
  EXPECT_NE(message(r, "label-pools").find("the same as emo"), std::string::npos);
  r = base_recipe();
  r.data.source = {"a:1:a", "b:1:b", "c:1:c", "d:1:d", "e:1:e"};  // 8 routed experts, 3 picks
  EXPECT_NE(message(r, "label-pools").find('5'), std::string::npos) << message(r, "label-pools");
}

}  // namespace
}  // namespace emox
