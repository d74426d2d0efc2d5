// A study: which cells it has, and that stopping, resuming and repeating it changes nothing.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "data/loader/loader.h"
#include "launch/config/recipe_file.h"
#include "launch/report/retention.h"
#include "launch/study/cell_retention.h"
#include "launch/study/cells.h"
#include "launch/train/run_directory.h"
#include "model/transformer/language_model.h"
#include "runtime/core/error.h"
#include "tests/support/checkpoints.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using Names = std::vector<std::string>;

Recipe base_recipe() {
  Recipe r = test::tiny_recipe({"a:1:a", "b:1:b"});
  r.run.name = "tiny", r.run.dir = "runs/s", r.run.seed = 4, r.model.pool_max = r.model.routed_experts();
  return r;
}

TEST(StudyCells, AreNamedOnTheCommandLine) {
  EXPECT_EQ(parse_cells("standard,emo"), (Names{"standard", "emo"}));
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

TEST(StudyCells, DifferInTheirExpertsOnly) {
  Recipe base = base_recipe();
  base.model.eval_pool = 7;
  const auto cells = study_cells(base, parse_cells("all"), 2, 3);
  ASSERT_EQ(cells.size(), 14U);
  EXPECT_EQ(cells[0].recipe.run.dir, "runs/s/cells/emo-seed4");
  EXPECT_EQ(cells[8].recipe.run.name, "standard-seed5");
  const std::map<std::string, Names> changes{{"emo", {}},
                                             {"standard", {"moe.pool: uniform -> off", "moe.eval_pool: 7 -> 0"}},
                                             {"fixed-pool", {"moe.pool: uniform -> fixed"}},
                                             {"quarter-free", {"moe.pool_free_share: 0 -> 0.25"}},
                                             {"local-balance", {"moe.balance_scope: step -> local"}},
                                             {"label-pools", {"moe.pool: uniform -> label"}},
                                             {"no-shared", {"moe.shared_experts: 1 -> 0"}}};
  for (const StudyCell& cell : cells) {
    SCOPED_TRACE(cell.recipe.run.name);
    Recipe same_seed = base;
    same_seed.run.seed = cell.seed, same_seed.eval.final = true;
    const Names found = list_changes(same_seed, cell.recipe);
    for (const std::string& change : found) EXPECT_TRUE(change.starts_with("moe.")) << change;
    for (const std::string& change : changes.at(cell.model))
      EXPECT_EQ(std::count(found.begin(), found.end(), change), 1) << change;
    EXPECT_EQ(found.empty(), cell.model == "emo");
    EXPECT_EQ(cell.recipe.model.num_experts, base.model.num_experts);
    EXPECT_EQ(cell.recipe.model.top_k, base.model.top_k);
  }
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
  const auto cells = study_cells(base_recipe(), parse_cells("all"), 1, 3);
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
  const auto message = [](Recipe r, const char* model) -> std::string {
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
  EXPECT_NE(message(r, "label-pools").find("5"), std::string::npos) << message(r, "label-pools");
}

class ProgramStudy : public testing::Test {
 protected:
  ProgramStudy() : recipe_(test::tiny_recipe(test::make_text_sources(directory_.path()))) {
    recipe_.train.steps = 4, recipe_.train.warmup_steps = 1, recipe_.data.eval_documents = 4, recipe_.run.seed = 4;
    recipe_.checkpoint.every_steps = 2;
    recipe_.run.dir = study_.string();
    path_ = test::write_recipe(directory_.path() / "tiny.ini", recipe_).string();
  }
  test::CommandResult emox(const std::string& arguments) const {
    return test::run_command("OMP_NUM_THREADS=1 " EMOX_BINARY " " + arguments);
  }
  std::string study(const std::string& arguments, const std::string& part) const {
    const test::CommandResult r = emox("study " + path_ + " --seeds 1 " + arguments);
    EXPECT_EQ(r.exit_code, 0) << r.output;
    EXPECT_NE(r.output.find(part), std::string::npos) << part << " in:\n" << r.output;
    return r.output;
  }
  fs::path cell(const std::string& name) const { return study_ / "cells" / name; }
  static std::string text_of(const fs::path& file) {
    std::ifstream in(file);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  test::TemporaryDirectory directory_;
  const fs::path study_ = directory_.path() / "study";
  Recipe recipe_;
  std::string path_;
};

TEST_F(ProgramStudy, StoppedResumedAndRepeated) {
  study("--run.stop_after_step=2", "the study is not complete");
  EXPECT_FALSE(fs::exists(study_ / "retention.csv"));
  EXPECT_FALSE(fs::exists(cell("standard-seed4")));
  const std::string output = study("", "All experts: EMO is ");
  EXPECT_NE(output.find("1/2 emo-seed4  step 3/4"), std::string::npos) << output;
  EXPECT_NE(output.find(" for all"), std::string::npos) << output;
  EXPECT_NE(output.find("2/2 standard-seed4  step 1/4"), std::string::npos) << output;

  // A cell is the run that `emox train` makes of its recipe.
  const std::string alone = (directory_.path() / "alone").string();
  ASSERT_EQ(emox("train " + path_ + " --moe.pool=off --run.dir=" + alone).exit_code, 0);
  test::expect_same_history(cell("standard-seed4"), alone, 4);

  const std::string csv = text_of(study_ / "retention.csv"), html = text_of(study_ / "report.html");
  const auto rows = read_retention(csv, "retention.csv");
  ASSERT_EQ(rows.size(), 56U);  // two models, four domains: full, and 5 and 2 experts by three selections
  const std::map<std::string, std::string> options{
      {"layerwise", ""}, {"one-document", " --examples=1"}, {"random", " --method=random"}};
  std::map<std::string, nlohmann::json> losses;
  for (const RetentionRow& row : rows) {
    const std::string run = cell(row.model + "-seed4").string();
    EXPECT_EQ(row.experts_total, 9);
    if (row.selection == "full") {
      const auto record = RunDirectory(run).evaluation_after(4);
      ASSERT_TRUE(record);
      EXPECT_EQ(row.loss, record->at("domains").at(row.domain).at("loss").get<double>());
      EXPECT_EQ(row.experts_kept, 9);
      continue;
    }
    const std::string evaluate =
        "eval " + run + " --json --seed=4 --keep=" + std::to_string(row.experts_kept) + options.at(row.selection);
    if (!losses.contains(evaluate)) losses[evaluate] = nlohmann::json::parse(emox(evaluate).output);
    EXPECT_EQ(row.loss, losses[evaluate].at("domains").at(row.domain).at("loss").get<double>()) << evaluate;
  }
  EXPECT_EQ(rows[0].domain, SourceSpec::parse(recipe_.data.source[0]).label);

  const auto trained = fs::last_write_time(cell("emo-seed4") / "metrics.jsonl");
  study("", "cell 2 of 2, standard-seed4: finished");
  EXPECT_EQ(fs::last_write_time(cell("emo-seed4") / "metrics.jsonl"), trained);
  EXPECT_EQ(text_of(study_ / "retention.csv"), csv);
  EXPECT_EQ(text_of(study_ / "report.html"), html);

  // Killed between the last checkpoint and the evaluation: only that is made up for.
  const std::string evaluations = text_of(cell("emo-seed4") / "eval.jsonl");
  std::ofstream(cell("emo-seed4") / "eval.jsonl") << evaluations.substr(0, evaluations.size() / 2);
  EXPECT_EQ(study("", "nothing to do").find("emo-seed4  step "), std::string::npos);
  EXPECT_EQ(text_of(study_ / "retention.csv"), csv);
}

TEST_F(ProgramStudy, RetentionGoesOnWithTheNextDomain) {
  study("--cells emo", "Rise of the loss");
  const fs::path file = cell("emo-seed4") / "retention-step-00000004.csv";
  const std::string whole = text_of(file), csv = text_of(study_ / "retention.csv");
  const StudyCell emo = study_cells(recipe_, {"emo"}, 1, 1)[0];
  ASSERT_TRUE(cell_is_complete(emo));

  // Stopped after one domain, and one more left half measured.
  fs::remove(file);
  Session session(recipe_.parallel, 1);
  int asked = 0;
  EXPECT_TRUE(measure_retention(session, emo, [&] { return ++asked < 2; }));
  EXPECT_EQ(read_retention(text_of(file), "one").size(), 6U);
  EXPECT_TRUE(whole.starts_with(text_of(file)));
  EXPECT_FALSE(cell_is_complete(emo));
  std::ofstream(file, std::ios::app) << "emo,4," << SourceSpec::parse(recipe_.data.source[2]).label
                                     << ",random,5,9,77\n";
  const std::string output = study("--cells emo", "Rise of the loss");
  EXPECT_NE(output.find("domain 3 of 3"), std::string::npos) << output;
  EXPECT_EQ(text_of(file), whole);
  EXPECT_EQ(text_of(study_ / "retention.csv"), csv);

  // Damaged: said, not taken for less.
  std::ofstream(file) << whole.substr(0, whole.size() / 2);
  const test::CommandResult r = emox("study " + path_ + " --seeds 1 --cells emo");
  EXPECT_EQ(r.exit_code, 2) << r.output;
  EXPECT_NE(r.output.find(file.string()), std::string::npos) << r.output;
}

// What was evaluated is the model of the last step; without an intact checkpoint of it, an older one must not stand in.
TEST_F(ProgramStudy, ALastCheckpointThatIsLostIsMadeAgain) {
  study("--cells emo", "Rise of the loss");
  const std::string csv = text_of(study_ / "retention.csv");
  fs::remove(cell("emo-seed4") / "retention-step-00000004.csv");
  const fs::path shard = cell("emo-seed4") / "checkpoints" / "step-00000004" / "shard-00000-of-00001.h5";
  std::fstream bytes(shard, std::ios::in | std::ios::out | std::ios::binary);
  bytes.seekp(static_cast<std::streamoff>(fs::file_size(shard) / 2));
  bytes.write("damage!!", 8);
  bytes.close();
  const std::string output = study("--cells emo", "emo-seed4 has no intact checkpoint of step 4");
  EXPECT_NE(output.find("1/1 emo-seed4  step 3/4"), std::string::npos) << output;
  EXPECT_EQ(text_of(study_ / "retention.csv"), csv);
  (void)test::verified(shard.parent_path());
}

TEST_F(ProgramStudy, ReportsTheCellsOfEarlierCalls) {
  study("--cells standard", "Rise of the loss");
  const std::string output = study("--cells emo", "than the standard MoE.");
  const std::string csv = text_of(study_ / "retention.csv");
  EXPECT_EQ(read_retention(csv, "both").size(), 56U);
  study("--cells standard,emo", "cell 1 of 2, standard-seed4: finished");
  EXPECT_EQ(text_of(study_ / "retention.csv"), csv);

  // Trained further: what the model of step 4 lost says nothing about this one, nor is it compared with that of step 4.
  study(
      "--cells emo --train.steps=6 --train.anneal_from_step=4 --train.schedule=linear --train.min_lr_ratio=0 "
      "--train.warmup_steps=0",
      "1/1 emo-seed4  step 5/6");
  const auto further = read_retention(text_of(study_ / "retention.csv"), "further"), both = read_retention(csv, "both");
  ASSERT_EQ(further.size(), 28U);
  for (std::size_t i = 0; i < further.size(); ++i) {
    EXPECT_EQ(further[i].model + further[i].domain + further[i].selection,
              both[i].model + both[i].domain + both[i].selection);
    EXPECT_NE(further[i].loss, both[i].loss) << i;
  }
  EXPECT_EQ(read_retention(text_of(cell("emo-seed4") / "retention-step-00000004.csv"), "kept").size(), 24U);

  study("--cells emo --run.seed=5 --train.learning_rate=0.002", "the report leaves out the cell standard-seed4: ");
  for (const RetentionRow& row : read_retention(text_of(study_ / "retention.csv"), "other")) EXPECT_EQ(row.seed, 5);
}

TEST_F(ProgramStudy, RefusesOtherValuesAndOtherDirectories) {
  study("--run.stop_after_step=2", "not complete");
  const auto refused = [&](const std::string& arguments, const std::string& part) {
    const test::CommandResult r = emox("study " + path_ + " " + arguments);
    EXPECT_EQ(r.exit_code, 2) << r.output;
    EXPECT_NE(r.output.find(part), std::string::npos) << part << " in:\n" << r.output;
  };
  refused("--seeds 1 --train.learning_rate=0.5", "train.learning_rate");
  refused("--run.dir=" + cell("emo-seed4").string(), "holds a training run");
  refused("--data.source=all:1:" + std::string(EMOX_SOURCE_DIR) + "/README.md", "README.md");
  refused("--cells emo,fixd-pool", "did you mean fixed-pool?");
  refused("--seeds 0", "--seeds");
}

}  // namespace
}  // namespace emox
