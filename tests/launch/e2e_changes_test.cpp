// `emox train` on a run whose recipe changes on the way: what is refused, what is recorded, what the messages advise.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "parallel/checkpoint/manifest.h"
#include "runtime/core/idx.h"
#include "tests/launch/tiny_program.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

class ProgramChanges : public test::TinyProgram {
 protected:
  ProgramChanges() {
    recipe_.train.steps = 8, recipe_.train.warmup_steps = 0, recipe_.train.learning_rate = 0.01;
    recipe_.checkpoint.every_steps = 4;
    write();
  }
  static void replace(const fs::path& file, const std::string& from, const std::string& to) {
    std::string content = text(file);
    ASSERT_NE(content.find(from), std::string::npos) << from;
    content.replace(content.find(from), from.size(), to);
    std::ofstream(file) << content;
  }
  /// Checkpoints that lie beside the others, not among them.
  std::ptrdiff_t moved_away() const {
    return std::count_if(fs::directory_iterator(run()), {}, [](const fs::directory_entry& e) {
      return e.path().filename().string().starts_with("step-") && fs::exists(e.path() / "manifest.json");
    });
  }
};

TEST_F(ProgramChanges, TheCheckpointsManifestSaysWhatTheRunIs) {
  expect(train("--run.stop_after_step=4"), 0, {"stopped after step 4"});
  const fs::path own = run() / "recipe.ini";
  // Edited by hand: not obeyed, not overwritten.
  replace(own, "learning_rate = 0.01", "learning_rate = 0.02");
  replace(own, "batch_sequences = 12", "batch_sequences = 24");
  const std::string edited = text(own);
  expect(emox("train " + own.string()), 2,
         {"train.learning_rate (was 0.01, now 0.02)", "train.batch_sequences (was 12, now 24)",
          "--run.change=train.batch_sequences,train.learning_rate"});
  EXPECT_EQ(text(own), edited);
  // Only the checkpoints were copied.
  const fs::path copy = directory_.path() / "copy";
  fs::create_directories(copy);
  fs::copy(run() / "checkpoints", copy / "checkpoints", fs::copy_options::recursive);
  expect(train("--run.dir=" + copy.string() + " --run.seed=9 --moe.pool=off"), 2,
         {"run.seed (was 3, now 9)", "moe.pool (was uniform, now off)"});
  expect(train("--run.dir=" + copy.string() + " --train.learning_rate=1e-2"), 0, {"resumed", "from step 4"});
  EXPECT_EQ(test::read_metrics(copy).back().at("step"), 8);
}

TEST_F(ProgramChanges, AWantedChangeIsMadeAndRecorded) {
  expect(train(""), 0, {"step 8/8"});
  const std::string values = " --train.steps=12 --train.learning_rate=0.002 --train.batch_sequences=24";
  const std::string named = " --run.change=train.steps,train.learning_rate,train.batch_sequences,train.clip_norm";
  expect(train(values), 2, {"train.steps (was 8, now 12)"});
  expect(train(values + named + " --run.stop_after_step=10"), 0,
         {"from step 8", "changed at step 8: train.steps was 8, is 12", "train.learning_rate was 0.01, is 0.002",
          "run.change names train.clip_norm, which is as it was", "the learning rate of step 9 is"});
  // The same command again, then without run.change; the old values are other values now.
  expect(train(values + named + " --run.stop_after_step=11"), 0, {"from step 10", "train.steps, which is as it was"});
  expect(train(""), 2, {"train.steps (was 12, now 8)"});
  expect(train(values), 0, {"from step 11", "step 12/12"});

  const auto lines = test::read_metrics(run());
  ASSERT_EQ(lines.size(), 12U);
  for (std::int64_t i = 0; i < 12; ++i) {
    EXPECT_EQ(lines[idx(i)].at("tokens"), i < 8 ? (i + 1) * 12 * 64 : (12 * 8 + (i - 7) * 24) * 64);
  }
  EXPECT_NEAR(lines[8].at("lr").get<double>(), 0.002 * (0.1 + 0.9 * (1 + std::cos(std::acos(-1.0) * 9 / 12)) / 2),
              1e-10);
  const Manifest m = read_manifest(run() / "checkpoints" / "step-00000012");
  EXPECT_EQ(m.tokens, (12 * 8 + 4 * 24) * 64);
  ASSERT_EQ(m.extra.at("changes").size(), 3U);
  EXPECT_EQ(m.extra.at("changes")[1].dump(), R"({"key":"train.batch_sequences","new":24,"old":12,"step":8})");
  const auto runs = nlohmann::json::parse(text(run() / "run.json"));
  ASSERT_EQ(runs.size(), 4U);
  EXPECT_EQ(runs[1].at("changes"), m.extra.at("changes"));
  EXPECT_EQ(runs[1].at("from_step"), 8);
  EXPECT_EQ(runs[0].at("changes").size(), 0U);
  EXPECT_NE(text(run() / "log" / "rank-00000.txt").find("changed at step 8: train.steps"), std::string::npos);
  EXPECT_EQ(json_of("checkpoint info " + run().string()).at("changes"), m.extra.at("changes"));
  expect(emox("checkpoint info " + run().string()), 0, {"changed at step 8: train.steps 8 -> 12"});
}

TEST_F(ProgramChanges, AnAnnealNeedsItsRun) {
  const std::string anneal =
      " --train.steps=12 --train.anneal_from_step=8 --train.schedule=linear --train.min_lr_ratio=0";
  expect(train(anneal), 2, {"train.anneal_from_step = 8", "holds no checkpoint"});
  expect(train("--run.stop_after_step=4"), 0, {"stopped after step 4"});
  expect(train(anneal), 2, {"is of step 4", "first train it to step 8"});
  EXPECT_EQ(test::read_metrics(run()).size(), 4U);
  expect(train(""), 0, {"step 8/8"});
  expect(train(anneal + " --run.stop_after_step=10"), 0,
         {"anneal: the rate falls from 0.001, which the run had at step 8"});
  expect(train(anneal), 0, {"from step 10"});
  const auto lines = test::read_metrics(run());
  ASSERT_EQ(lines.size(), 12U);
  for (std::int64_t i = 8; i < 12; ++i)
    EXPECT_NEAR(lines[idx(i)].at("lr").get<double>(), 0.001 * static_cast<double>(11 - i) / 4, 1e-11);
}

// A misspelt run.dir is not a new run, and the list of changes is none.
TEST_F(ProgramChanges, AChangeNeedsItsRun) {
  const fs::path nowhere = directory_.path() / "nowhere";
  expect(train("--run.change=train.steps --train.steps=12 --run.dir=" + nowhere.string()), 2,
         {"run.change = train.steps goes on with a run that is there", "holds no checkpoint"});
  EXPECT_FALSE(fs::exists(nowhere / "checkpoints"));
  expect(train("--run.stop_after_step=4"), 0, {"stopped after step 4"});
  expect(train("--run.stop_after_step=4"), 0, {"step 4 of 8 and run.stop_after_step is not beyond it"});
  expect(train("--run.change=run.change"), 2, {"run.change names itself"});
}

// Doing what the message says, word by word, leads to a run that goes on.
TEST_F(ProgramChanges, TheAdviceAfterANaNWorks) {
  const std::string bad =
      "--train.learning_rate=10 --train.clip_norm=0 --train.weight_decay=10 --train.steps=99 "
      "--train.schedule=constant --checkpoint.every_steps=1";
  std::string change;
  for (int again = 0; again < 3; ++again) {  // without the change it happens again, and the one before is still there
    const test::CommandResult failed = train(bad);
    expect(failed, 1,
           {"Nothing was updated in this step", "holds the weights that gave this", "mv ",
            "every update multiplies the weights by 1 - 100"});
    const auto quoted = [&](const std::string& from, const std::string& to) {
      const std::size_t at = failed.output.find(from) + from.size();
      return failed.output.substr(at, failed.output.find(to, at) - at);
    };
    const std::string move = quoted("move it away with `", "`");
    change = quoted("the same command with ", " (");
    EXPECT_EQ(test::run_command(move).exit_code, 0) << move;
  }
  EXPECT_EQ(moved_away(), 3);
  const std::size_t done = test::read_metrics(run()).size();
  ASSERT_GE(done, 2U);
  const test::CommandResult again = train(bad + " " + change + " --run.stop_after_step=" + std::to_string(done + 3));
  expect(again, 0, {"resumed", "train.learning_rate was 10, is 0.01"});
  const auto lines = test::read_metrics(run());
  EXPECT_EQ(lines.size(), done + 3);
  EXPECT_TRUE(lines.back().at("loss").is_number());
}

// Skipped steps leave the weights that gave the NaN as they are: saving them would push out the good ones before.
TEST_F(ProgramChanges, SkippedNaNsPushNoGoodCheckpointOut) {
  const std::string bad =
      "--train.learning_rate=10 --train.clip_norm=0 --train.weight_decay=10 --train.steps=99 "
      "--train.schedule=constant --checkpoint.every_steps=2 --train.skip_spikes=3 --train.skip_window=8";
  const test::CommandResult failed = train(bad);
  expect(failed, 1, {"is not saved: its loss or norm is not finite", "Nothing was updated in this step"});
  const auto last = [&](const std::string& text, const std::string& from, const std::string& to) {
    const std::size_t at = text.rfind(from);
    return at == std::string::npos ? ""
                                   : text.substr(at + from.size(), text.find(to, at + from.size()) - at - from.size());
  };
  const std::string move = last(failed.output, "move it away with `", "`"),
                    change = last(failed.output, "the same command with ", " (");
  if (!move.empty()) {
    EXPECT_EQ(test::run_command(move).exit_code, 0) << move;
  }
  const test::CommandResult again = train(bad + " " + change + " --run.stop_after_step=6");
  expect(again, 0, {"resumed", "train.learning_rate was 10"});
  EXPECT_EQ(again.output.find("is skipped"), std::string::npos) << again.output;
}

}  // namespace
}  // namespace emox
