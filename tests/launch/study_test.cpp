// A study as a program: stopping, resuming and repeating it changes nothing, and what is asked of it is in its files.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "data/loader/loader.h"
#include "launch/analysis/inference/loaded_model.h"
#include "launch/analysis/report/retention.h"
#include "launch/analysis/study/cell_retention.h"
#include "launch/analysis/study/tune.h"
#include "launch/config/recipe_file.h"
#include "launch/run/run_directory.h"
#include "runtime/files/files.h"
#include "tests/support/checkpoints.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

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
  static std::string text_of(const fs::path& file) { return try_read_text(file).text; }

  test::TemporaryDirectory directory_;
  const fs::path study_ = directory_.path() / "study";
  Recipe recipe_;
  std::string path_;
};

TEST_F(ProgramStudy, StoppedResumedAndRepeated) {
  study("--run.stop_after_step=2", "the study is not complete");
  EXPECT_FALSE(fs::exists(study_ / "retention.csv"));
  EXPECT_FALSE(fs::exists(cell("standard-seed4")));
  const std::string output = study("", "  full model: ");
  EXPECT_NE(output.find("1/2 emo-seed4  step 3/4"), std::string::npos) << output;
  EXPECT_NE(output.find(" for all"), std::string::npos) << output;
  EXPECT_NE(output.find("2/2 standard-seed4  step 1/4"), std::string::npos) << output;

  // A cell is the run that `emox train` makes of its recipe.
  const std::string alone = (directory_.path() / "alone").string();
  ASSERT_EQ(emox("train " + path_ + " --moe.pool=off --run.dir=" + alone).exit_code, 0);
  test::expect_same_history(cell("standard-seed4"), alone, 4);

  const std::string csv = text_of(study_ / "retention.csv"), html = text_of(study_ / "report.html");
  // The pictures, and that of the training in the report, too.
  for (const char* name : {"retention.svg", "loss.svg"}) {
    const std::string svg = text_of(study_ / name), lines = svg.substr(svg.find("<title>"));
    EXPECT_NE(svg.find(">standard MoE</text>"), std::string::npos) << name << svg;
    EXPECT_NE(html.find(lines), std::string::npos) << name;
  }
  const auto rows = read_retention(csv, "retention.csv");
  const auto chance = read_chance(text_of(study_ / "chance.csv"), "chance.csv");
  EXPECT_EQ(chance.size(), 128U);  // two models, four domains, two numbers of experts
  ASSERT_EQ(rows.size(), 56U);     // two models, four domains: full, and 5 and 2 experts by three selections
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
    double loss = row.loss;
    if (row.selection == "random") {  // the mean of eight draws, of which the command makes the first
      double mean = 0;
      std::int64_t draws = 0;
      std::set<double> different;
      for (const ChanceRow& draw : chance)
        if (draw.model == row.model && draw.domain == row.domain && draw.experts_kept == row.experts_kept) {
          EXPECT_EQ(draw.draw, draws++);
          mean += draw.loss / 8;
          different.insert(draw.loss);
          if (draw.draw == 0) loss = draw.loss;
        }
      EXPECT_EQ(draws, 8);
      EXPECT_GE(different.size(), 4U);  // one of eight experts in each of two layers: some may be drawn again
      EXPECT_NEAR(row.loss, mean, 1e-12);
    }
    EXPECT_EQ(loss, losses[evaluate].at("domains").at(row.domain).at("loss").get<double>()) << evaluate;
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
  Session session({.parallel = recipe_.parallel, .threads = 1});
  int asked = 0;
  EXPECT_TRUE(measure_retention(session, emo, [&] { return ++asked < 2; }));
  EXPECT_EQ(read_retention(text_of(file), "one").size(), 6U);
  LoadedModel loaded(session, cell("emo-seed4"), {});
  std::set<std::vector<std::vector<std::int32_t>>> subsets;  // every domain and draw has its own
  for (const SourceSpec& domain : loaded.sources)
    for (const std::uint32_t draw : {0U, 1U})
      subsets.insert(loaded.select_for_domain(session, domain, {SelectionMethod::Random, {5}, 1, 4, draw}).routed);
  EXPECT_EQ(subsets.size(), 8U);
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
  const std::string output = study("--cells emo", "EMO, less standard MoE, of the same seeds:");
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

// A model with its own learning rate, a dense one, a smaller one, and a run that differs in rounding only.
TEST_F(ProgramStudy, BaselinesWithTheirOwnValuesAndARepeat) {
  const std::string arguments =
      "--cells emo,dense,quarter-experts --chance-draws 2 --set dense:train.learning_rate=2e-3 ";
  const std::string output = study(arguments + "--repeat-rounding", "up to ");
  EXPECT_NE(output.find("dense, beyond [moe]: "), std::string::npos) << output;
  EXPECT_NE(output.find("train.learning_rate: 0.001 -> 0.002"), std::string::npos) << output;
  const auto rows = read_retention(text_of(study_ / "retention.csv"), "retention.csv");
  EXPECT_EQ(rows.size(), 28U + 4 + 4);
  for (const RetentionRow& row : rows)
    EXPECT_EQ(row.experts_total, row.model == "emo" ? 9 : row.model == "dense" ? 1 : 2) << row.model;
  EXPECT_EQ(read_chance(text_of(study_ / "chance.csv"), "chance.csv").size(), 16U);
  const auto repeats = read_retention(text_of(study_ / "repeats.csv"), "repeats.csv");
  ASSERT_EQ(repeats.size(), 12U);  // four domains: full, and 5 and 2 experts chosen by their documents
  for (const RetentionRow& row : rows)
    if (row.model == "emo" && row.selection == "full" && row.domain == repeats[0].domain) {
      EXPECT_NEAR(row.loss, repeats[0].loss, 1e-4);
    }
  const std::string html = text_of(study_ / "report.html");
  for (const char* part : {"The same memory", "standard MoE of 2 experts", "same seed, differing in rounding only"})
    EXPECT_NE(html.find(part), std::string::npos) << part;

  // A later call sees all of it again; one of other values leaves out what they are not of, and says so.
  EXPECT_NE(study("--cells emo --chance-draws 2 --set dense:train.learning_rate=2e-3", "dense  ").find("rounding"),
            std::string::npos);
  EXPECT_EQ(text_of(study_ / "report.html"), html);
  study("--cells emo --chance-draws 2", "Left out: the cell dense-seed4, which was made with other values");
}

TEST_F(ProgramStudy, TunesEachModelOnItsOwn) {
  const std::string output = study("--cells emo,standard --tune train.learning_rate=1e-3,2e-3", "/tune.csv");
  EXPECT_NE(output.find("1 seed(s): train.learning_rate=0.002"), std::string::npos) << output;
  const std::string csv = text_of(study_ / "tune.csv");
  const auto rows = read_tune(csv, "tune.csv");
  ASSERT_EQ(rows.size(), 4U);
  const std::string own =
      emox("eval " + (study_ / "tuning/emo-seed4-learning_rate-0.001").string() + " --json --data.eval_part=report")
          .output;
  const int report_tokens = nlohmann::json::parse(own).at("domains").at("gnu").at("tokens").get<int>();
  for (const TuneRow& row : rows) {
    const std::string run = "tuning/" + row.model + "-seed4-learning_rate-" + row.settings.substr(20);
    const auto record = RunDirectory(study_ / run).evaluation_after(4);
    ASSERT_TRUE(record) << run;
    EXPECT_EQ(record->at("part"), "tune");
    EXPECT_NEAR(row.loss, record->at("mean").at("loss").get<double>(), 1e-7);
    EXPECT_EQ(row.experts_kept, 2);
    EXPECT_NE(row.rise, 0);
    EXPECT_NE(record->at("domains").at("gnu").at("tokens").get<int>(), report_tokens);  // of another part
    EXPECT_NE(text_of(study_ / run / "recipe.ini").find("eval_part = tune"), std::string::npos);
  }
  EXPECT_FALSE(fs::exists(study_ / "retention.csv"));
  study("--cells emo --tune train.learning_rate=2e-3", "cell 1 of 1, emo-seed4-learning_rate-0.002: finished");
  EXPECT_EQ(text_of(study_ / "tune.csv").size(), csv.size());  // what was found stays
  EXPECT_EQ(read_tune(text_of(study_ / "tune.csv"), "tune.csv").size(), 4U);

  // Rows of a run that is gone, of another recipe and of other text are not comparable: they go, and are named.
  const auto models = [&] {
    std::vector<std::string> found;
    for (const TuneRow& row : read_tune(text_of(study_ / "tune.csv"), "tune.csv"))
      found.push_back(row.model + " " + row.settings.substr(20));
    return found;
  };
  using Names = std::vector<std::string>;
  fs::remove_all(study_ / "tuning" / "standard-seed4-learning_rate-0.001");
  const std::string one = "--cells emo --tune train.learning_rate=2e-3 ";
  study(one, "leaves out standard of seed 4 with train.learning_rate=0.001 after 4 steps: ");
  EXPECT_EQ(models(), (Names{"emo 0.001", "standard 0.002", "emo 0.002"}));
  study("--cells emo --tune train.learning_rate=3e-3 --set standard:moe.balance_weight=0.5",
        "leaves out standard of seed 4 with train.learning_rate=0.002 after 4 steps: ");
  EXPECT_EQ(models(), (Names{"emo 0.001", "emo 0.002", "emo 0.003"}));
  const fs::path train = fs::path(SourceSpec::parse(recipe_.data.source[0]).path) / "train.npy";
  std::fstream(train, std::ios::in | std::ios::out | std::ios::binary).seekp(-2, std::ios::end).put('?');
  const std::string other = study("--cells emo --tune train.learning_rate=4e-3", "was trained on other data");
  EXPECT_EQ(models(), Names{"emo 0.004"}) << other;
  // Runs of other lengths stand beside each other, and what a run had found before it was trained further stays.
  study("--cells emo --tune train.learning_rate=5e-3 --train.steps=6", "6 steps, 1 seed(s)");
  EXPECT_EQ(models(), (Names{"emo 0.004", "emo 0.005"}));
  study(
      "--cells emo --tune train.learning_rate=4e-3 --train.steps=6 --train.anneal_from_step=4 --train.schedule=linear "
      "--train.min_lr_ratio=0 --train.warmup_steps=0",
      "6 steps, 1 seed(s)");
  EXPECT_EQ(models(), (Names{"emo 0.004", "emo 0.004"}));
}

// A rate that is too high is a result as well: the others are still tried.
TEST_F(ProgramStudy, ADivergedValueOfATuningIsARow) {
  // A rate of 10 multiplies the weights by -99 in every step.
  const std::string decay =
      " --train.weight_decay=10 --train.clip_norm=0 --train.schedule=constant --train.steps=40 "
      "--checkpoint.every_steps=0";
  const std::string output = study("--cells emo,standard --tune train.learning_rate=1e-3,10,2e-3" + decay,
                                   "emo-seed4-learning_rate-10 diverged: step ");
  EXPECT_EQ(output.find("emox: "), std::string::npos) << "no error, and nothing is armed:\n" << output;
  EXPECT_NE(output.find("  diverged             -  40 steps, 1 seed(s): train.learning_rate=10"), std::string::npos)
      << output;
  const auto rows = read_tune(text_of(study_ / "tune.csv"), "tune.csv");
  ASSERT_EQ(rows.size(), 6U);
  EXPECT_EQ(std::count_if(rows.begin(), rows.end(), [](const TuneRow& r) { return std::isinf(r.loss); }), 2);
  study("--cells emo --tune train.learning_rate=1e-3" + decay, "cell 1 of 1, emo-seed4-learning_rate-0.001: finished");
  // In the study itself it is an error.
  const test::CommandResult r =
      emox("study " + path_ + " --seeds 1 --train.learning_rate=10 --run.dir=" + study_.string() + "-b" + decay);
  EXPECT_EQ(r.exit_code, 1) << r.output;
}

// eval.jsonl cannot hold such a label as it is, and a study that does not find it there would never be finished.
TEST_F(ProgramStudy, ALabelOfAnyBytes) {
  const std::string label = "caf\xe9";
  recipe_.data.source.resize(2);
  recipe_.data.source[0] = label + recipe_.data.source[0].substr(recipe_.data.source[0].find(':'));
  (void)test::write_recipe(path_, recipe_);
  const std::string output = study("--cells emo --chance-draws 1", "Rise of the loss");
  const auto rows = read_retention(text_of(study_ / "retention.csv"), "retention.csv");
  ASSERT_EQ(rows.size(), 14U);  // two domains: full, and 5 and 2 experts by three selections
  EXPECT_EQ(rows[0].domain, label);
  const auto record = RunDirectory(cell("emo-seed4")).evaluation_after(4);
  ASSERT_TRUE(record);
  EXPECT_EQ(rows[0].loss, record->at("domains").at("caf\\xe9").at("loss").get<double>());
  study("--cells emo --chance-draws 1", "cell 1 of 1, emo-seed4: finished");
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
  refused("--data.eval_part=tune", "a study reports: data.eval_part = tune");
  refused("--tune train.learning_rate=1 --repeat-rounding", "--repeat-rounding is for the report");
  // Other text under the same names: the cell that is there was trained on what they held before.
  const fs::path train = fs::path(SourceSpec::parse(recipe_.data.source[0]).path) / "train.npy";
  fs::copy_file(train, train.string() + ".kept");
  std::fstream(train, std::ios::in | std::ios::out | std::ios::binary).seekp(-2, std::ios::end).put('?');
  refused("--seeds 1", "emo-seed4 was trained on other data: source gnu: " + train.string() + " has other tokens");
  fs::rename(train.string() + ".kept", train);

  // A wanted change is no other value, but the report says that a part of the run was another.
  study("--cells emo --train.learning_rate=0.002 --run.change=train.learning_rate",
        "emo-seed4 was changed at step 2: train.learning_rate 0.001 -> 0.002");
  EXPECT_NE(text_of(study_ / "report.html").find("emo-seed4 was changed at step 2"), std::string::npos);
  refused("--seeds 1 --cells emo --train.learning_rate=0.003 --run.change=train.learning_rate",
          "the cell emo-seed4 is trained to its last step");

  // run.change = data.source is for runs that go on: a finished cell of other data is in no report.
  std::fstream(train, std::ios::in | std::ios::out | std::ios::binary).seekp(-2, std::ios::end).put('?');
  refused("--seeds 1 --cells emo --train.learning_rate=0.002 --run.change=data.source",
          "emo-seed4 was trained on other data");
  study("--cells standard --train.learning_rate=0.002 --run.change=data.source", "Left out: the cell emo-seed4");
}

}  // namespace
}  // namespace emox
