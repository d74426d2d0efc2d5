// What a resume may change in its run's recipe, what it records, and how it goes on.
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "launch/config/changes.h"
#include "launch/config/recipe_file.h"
#include "launch/run/run_start.h"
#include "runtime/core/error.h"
#include "tests/support/messages.h"

namespace emox {
namespace {

using test::expect_parts, test::usage_error;

const std::string kGood = "[train]\nsteps = 10\n[data]\nsource = a:1:x\n";
using Strings = std::vector<std::string>;

Recipe recipe(const Strings& overrides = {}) { return parse_recipe(kGood, "r.ini", overrides); }

TEST(Resume, ListsEveryKeyThatMayNotChange) {
  const Recipe before = parse_recipe(kGood, "r.ini");
  const Recipe now =
      parse_recipe(kGood, "r.ini", {"--moe.top_k=5", "--train.steps=11", "--data.source=b:1:y", "--run.dir=D"});
  const std::string message = usage_error([&] { check_resume(before, now); });
  expect_parts(message, {"the run in D", "moe.top_k (was 4, now 5)", "train.steps (was 10, now 11)",
                         "data.source (was a:1:x, now b:1:y)", "--run.change=moe.top_k,train.steps,data.source"});
  EXPECT_EQ(message.find("run.dir ("), std::string::npos) << message;
}

TEST(Resume, WhatMayChange) {
  const Recipe before = parse_recipe(kGood, "r.ini");
  const Recipe now =
      parse_recipe(kGood, "r.ini",
                   {"--parallel.watchdog_s=5", "--checkpoint.every_steps=3", "--eval.final=false",
                    "--run.stop_after_step=4", "--run.stop_after_minutes=3", "--run.name=n", "--run.dir=d",
                    "--train.threads=3", "--train.micro_batch_memory=hold", "--train.micro_batch_sequences=2"});
  EXPECT_NO_THROW(check_resume(before, now));
}

TEST(Resume, TheBeginningMayNotChange) {
  const Recipe before = parse_recipe(kGood, "r.ini", {"--run.warm_start=runs/a"});
  EXPECT_NO_THROW(check_resume(before, before));
  const Recipe now = parse_recipe(kGood, "r.ini", {"--run.warm_start=runs/b", "--run.warm_start_state=optimizer"});
  expect_parts(usage_error([&] { check_resume(before, now); }),
               {"run.warm_start (was runs/a, now runs/b)", "run.warm_start_state (was weights, now optimizer)"});
}

TEST(Resume, MicroBatchMayChangeOnlyWhereNothingSeesIt) {
  const auto changed = [](const std::string& key) {
    const Recipe before = parse_recipe(kGood, "r.ini", {key});
    const Recipe now = parse_recipe(kGood, "r.ini", {key, "--train.micro_batch_sequences=2"});
    return usage_error([&] { check_resume(before, now); });
  };
  EXPECT_EQ(changed("--moe.balance_scope=step"), "(no UsageError)");
  expect_parts(changed("--moe.balance_scope=micro_batch"), {"train.micro_batch_sequences (was 4, now 2)"});
  expect_parts(changed("--moe.balance_scope=local"), {"train.micro_batch_sequences"});
}

TEST(Resume, AnnealOnlyFromTheEndOfTheRun) {
  const std::vector<std::string> anneal = {"--train.steps=15", "--train.schedule=linear", "--train.min_lr_ratio=0",
                                           "--train.anneal_from_step=10", "--moe.pool=off"};
  const Recipe now = parse_recipe(kGood, "r.ini", anneal);
  EXPECT_NO_THROW(now.validate(1));
  EXPECT_NO_THROW(check_resume(parse_recipe(kGood, "r.ini"), now));
  const Recipe longer = parse_recipe(kGood, "r.ini", {"--train.steps=12"});
  expect_parts(usage_error([&] { check_resume(longer, now); }),
               {"train.anneal_from_step = 10", "of step 12", "it is past that step"});
  Recipe wider = now;
  wider.model.expert_ff = 128;
  expect_parts(usage_error([&] { check_resume(parse_recipe(kGood, "r.ini"), wider); }), {"moe.expert_ff"});
}

TEST(Resume, ComparesValuesNotTexts) {
  const auto same = [](const Strings& before, const Strings& now) {
    return usage_error([&] { check_resume(recipe(before), recipe(now)); });
  };
  EXPECT_EQ(same({"--train.learning_rate=1e-2"}, {"--train.learning_rate=0.010"}), "(no UsageError)");
  // Paths are compared by what the files hold, weights by the shares that they come to.
  EXPECT_EQ(same({"--data.source=a:1:x"}, {"--data.source=a:1.0:./x"}), "(no UsageError)");
  EXPECT_EQ(same({"--data.source=a:1:x", "--data.source=b:3:y"}, {"--data.source=a:0.5:x", "--data.source=b:1.5:y"}),
            "(no UsageError)");
  expect_parts(same({"--data.source=a:1:x", "--data.source=b:3:y"}, {"--data.source=a:1:x", "--data.source=b:2:y"}),
               {"data.source"});
  const Recipe steps = recipe();
  const std::string tokens = std::to_string(10 * steps.tokens_per_step());
  EXPECT_EQ(same({}, {"--train.steps=0", "--train.tokens=" + tokens}), "(no UsageError)");
  expect_parts(same({}, {"--train.steps=0", "--train.tokens=" + tokens + "0"}), {"train.steps (was 10, now 100)"});
}

Manifest manifest_of(const Recipe& saved, std::int64_t step, const RunStart* start = nullptr) {
  Manifest m;
  m.step = step;
  m.recipe = to_ini(saved);
  if (start != nullptr) m.extra = start->to_extra();
  return m;
}

RunStart resumed(const Recipe& saved, std::int64_t step, const Strings& overrides, const RunStart* start = nullptr,
                 RateGiven rate = RateGiven::Yes) {
  return plan_resume(recipe(overrides), manifest_of(saved, step, start), "runs/r/checkpoints/step", {.rate = rate});
}

std::string refused(const Recipe& saved, std::int64_t step, const Strings& overrides, const RunStart* start = nullptr) {
  return usage_error([&] { (void)resumed(saved, step, overrides, start); });
}

TEST(RunChange, NamedKeysChangeAndAreRecorded) {
  const Strings values = {"--train.learning_rate=1e-4", "--train.steps=20"};
  Strings command = values;
  command.push_back("--run.change=train.steps, train.learning_rate,moe.pool");
  expect_parts(refused(recipe(), 4, values),
               {"train.learning_rate (was 0.001, now 0.0001)", "--run.change=train.steps,train.learning_rate"});
  expect_parts(refused(recipe(), 4, {"--train.steps=20", "--train.eps=1e-6", "--run.change=train.steps"}),
               {"train.eps (was 1e-08, now 1e-06)", "--run.change=train.steps,train.eps"});
  const RunStart start = resumed(recipe(), 4, command);
  EXPECT_EQ(start.step, 4);
  EXPECT_EQ(start.recipe.total_steps(), 20);
  EXPECT_EQ(start.recipe.run.change, "");
  EXPECT_EQ(start.changes.dump(), R"([{"key":"train.steps","new":20,"old":10,"step":4},)"
                                  R"({"key":"train.learning_rate","new":0.0001,"old":0.001,"step":4}])");
  EXPECT_EQ(change_lines(start.changes),
            (Strings{"step 4: train.steps 10 -> 20", "step 4: train.learning_rate 0.001 -> 0.0001"}));
  expect_parts(start.notes.at(2), {"run.change names moe.pool", "nothing to change"});
  // Saved with these values, it goes on with them, named or not, and not with the old ones.
  const RunStart again = resumed(start.recipe, 6, command, &start);
  EXPECT_EQ(again.changes, start.changes);
  EXPECT_EQ(again.new_changes, 0U);
  EXPECT_EQ(resumed(start.recipe, 6, values, &start).changes, start.changes);
  expect_parts(refused(start.recipe, 6, {}, &start), {"train.steps (was 20, now 10)"});
  // A later change is added to the list.
  Strings later = values;
  later.insert(later.end(), {"--train.clip_norm=0.5", "--run.change=train.clip_norm"});
  const RunStart third = resumed(again.recipe, 8, later, &again);
  ASSERT_EQ(third.changes.size(), 3U);
  EXPECT_EQ(third.new_changes, 1U);
  EXPECT_EQ(change_lines(third.changes).back(), "step 8: train.clip_norm 1 -> 0.5");
}

TEST(RunChange, TheShapeOfTheModelNeverChanges) {
  expect_parts(refused(recipe(), 4, {"--model.d_model=192", "--train.eps=1e-6", "--run.change=train.eps"}),
               {"model.d_model", "the shape of the model", "no resume can change it", "another run.dir"});
  expect_parts(refused(recipe(), 4, {"--run.seed=3"}), {"run.seed is the order of the data"});
  expect_parts(refused(recipe(), 4, {"--run.change=moe.num_experts"}), {"run.change = moe.num_experts"});
}

TEST(RunChange, ARunIsNotCutShort) {
  expect_parts(refused(recipe(), 8, {"--train.steps=5", "--run.change=train.steps"}),
               {"at step 8 already", "new last step 5"});
}

// Sequences of 512 tokens in batches of 16: 8192 tokens a step.
TEST(RunChange, ABatchThatChangesLeavesTokensAndDataWhereTheyAre) {
  const Recipe before = recipe({"--train.steps=0", "--train.tokens=163840", "--model.sequence_length=512"});
  ASSERT_EQ(before.total_steps(), 20);
  Strings command = {"--train.steps=0", "--train.tokens=163840", "--model.sequence_length=512",
                     "--train.batch_sequences=32"};
  expect_parts(refused(before, 8, command), {"train.batch_sequences (was 16, now 32)"});
  command.push_back("--run.change=train.batch_sequences");
  const RunStart start = resumed(before, 8, command);
  EXPECT_EQ(start.tokens_after(8), 8 * 8192);
  EXPECT_EQ(start.tokens_after(9), 8 * 8192 + 16384);
  EXPECT_EQ(start.recipe.total_steps(), 14) << "8 steps of 8192 and 6 of 16384";
  EXPECT_EQ(start.data.step, 8);
  EXPECT_EQ(start.data.sequences, 128);
  EXPECT_EQ(change_lines(start.changes),
            (Strings{"step 8: train.steps 20 -> 14", "step 8: train.batch_sequences 16 -> 32"}));
  // The same command, later: counted from where the batch changed.
  command.pop_back();
  const RunStart later = resumed(start.recipe, 11, command, &start);
  EXPECT_EQ(later.recipe.total_steps(), 14);
  EXPECT_EQ(later.data, start.data);
  EXPECT_EQ(later.tokens_after(11), 8 * 8192 + 3 * 16384);
}

TEST(RunChange, ASourceIsAdded) {
  const Strings two = {"--data.source=a:1:x", "--data.source=b:1:y"};
  expect_parts(refused(recipe(), 4, two), {"data.source"});
  Strings command = two;
  command.push_back("--run.change=data.source");
  const RunStart start = resumed(recipe(), 4, command);
  ASSERT_EQ(start.data.sources.size(), 2U);
  EXPECT_EQ(start.data.sources[0], (LoaderStart::Source{"a", 0, 64}));
  EXPECT_EQ(start.data.sources[1], (LoaderStart::Source{"b", 1, 0}));
  EXPECT_EQ(start.changes[0]["new"].dump(), R"(["a:1:x","b:1:y"])");
  // Other text under a label that stays, as its files say.
  const RunStart other = plan_resume(recipe({"--run.change=data.source"}), manifest_of(recipe(), 4), "c",
                                     {.rate = RateGiven::Yes, .replaced = {"a"}});
  EXPECT_EQ(other.data.sources.at(1), (LoaderStart::Source{"a", 1, 0}));
  EXPECT_EQ(other.changes.at(0).at("key"), "data.source");
  EXPECT_EQ(other.notes.size(), 2U) << "not that nothing changed";
  // Other held-out text: recorded, and the training text is read on.
  const RunStart held_out = plan_resume(recipe({"--run.change=data.source"}), manifest_of(recipe(), 4), "c",
                                        {.rate = RateGiven::Yes, .held_out_replaced = {"a"}});
  EXPECT_EQ(held_out.data, LoaderStart{});
  EXPECT_EQ(change_lines(held_out.changes),
            (Strings{"step 4: data.source held-out text of a -> held-out text of a replaced"}));
  EXPECT_EQ(held_out.new_changes, 1U);
  ASSERT_EQ(held_out.notes.size(), 1U);
  expect_parts(held_out.notes[0], {"changed at step 4", "held-out text of a replaced"});
  command.push_back("--moe.pool=label");
  expect_parts(refused(recipe({"--moe.pool=label"}), 4, command), {"moe.pool = label", "data.source cannot change"});
}

// Cosine from 0.01 to a tenth over 40 steps, annealed where it ended or where it is.
TEST(Anneal, FallsFromTheRateThatTheRunHad) {
  const Strings own = {"--train.learning_rate=0.01", "--train.steps=40"};
  const Strings anneal = {"--train.steps=60", "--train.anneal_from_step=40", "--train.schedule=linear",
                          "--train.min_lr_ratio=0"};
  const auto with = [&](Strings more) {
    more.insert(more.end(), anneal.begin(), anneal.end());
    return more;
  };
  const Recipe saved = recipe(own);
  // Not given; or given as in the run's own recipe, of which the anneal's is a copy.
  for (const RunStart& start :
       {resumed(saved, 40, anneal, nullptr, RateGiven::No), resumed(saved, 40, with({"--train.learning_rate=0.01"})),
        resumed(saved, 40, with({"--train.learning_rate=0.001"}))}) {
    EXPECT_NEAR(schedule_of(start.recipe).learning_rate(50), 0.0005, 1e-12);
    expect_parts(start.notes.at(0), {"falls from 0.001", "at step 40", "cosine from train.learning_rate = 0.01"});
    // The command that began it goes on with it, and so does the recipe that the run's directory keeps.
    const RunStart again = resumed(start.recipe, 45, with({"--train.learning_rate=0.01"}), &start, RateGiven::No);
    EXPECT_EQ(schedule_of(again.recipe).learning_rate(50), schedule_of(start.recipe).learning_rate(50));
    EXPECT_EQ(plan_resume(start.recipe, manifest_of(start.recipe, 45, &start), "c").recipe.train.learning_rate,
              start.recipe.train.learning_rate);
  }
  const RunStart told = resumed(saved, 40, with({"--train.learning_rate=0.004"}));
  EXPECT_NEAR(schedule_of(told.recipe).learning_rate(50), 0.002, 1e-12);
  expect_parts(told.notes.at(0), {"falls from 0.004, the train.learning_rate of this recipe", "not from 0.001"});
  EXPECT_NO_THROW((void)resumed(told.recipe, 45, with({"--train.learning_rate=0.004"}), &told));
  expect_parts(refused(told.recipe, 45, with({"--train.learning_rate=0.002"}), &told), {"train.learning_rate"});
}

TEST(Anneal, GoesOnWithARunThatIsExactlyThere) {
  const Recipe saved = recipe({"--train.steps=40"});
  const auto at = [&](std::int64_t step) {
    return refused(saved, step,
                   {"--train.steps=60", "--train.anneal_from_step=40", "--train.schedule=linear",
                    "--train.min_lr_ratio=0", "--run.dir=runs/base"});
  };
  expect_parts(at(30), {"train.anneal_from_step = 40", "runs/base", "of step 30", "first train it to step 40"});
  expect_parts(at(41), {"of step 41", "past that step"});
  EXPECT_EQ(at(40), "(no UsageError)");
  expect_parts(usage_error([&] {
                 (void)plan_start(recipe({"--train.anneal_from_step=4", "--run.dir=runs/none"}));
               }),
               {"train.anneal_from_step = 4", "runs/none holds no checkpoint", "--run.dir=DIR"});
  // A rate of 0 cannot fall.
  const Recipe to_zero = recipe({"--train.steps=40", "--train.min_lr_ratio=0"});
  expect_parts(
      refused(to_zero, 40,
              {"--train.steps=60", "--train.anneal_from_step=40", "--train.schedule=linear", "--train.min_lr_ratio=0"}),
      {"learning rate 0", "--train.learning_rate=X"});
}

TEST(Resume, ACheckpointWithoutARecipeIsNotGoneOnWith) {
  Manifest m = manifest_of(recipe(), 4);
  m.recipe.clear();
  expect_parts(usage_error([&] { (void)plan_resume(recipe(), m, "runs/r/checkpoints/step-00000004"); }),
               {"step-00000004 holds no recipe", "--run.warm_start="});
  Manifest odd = manifest_of(recipe(), 4);
  odd.extra["data_start"] = {{"step", "four"}, {"sequences", 1}, {"sources", nlohmann::json::array()}};
  expect_parts(usage_error([&] { (void)plan_resume(recipe(), odd, "runs/r/checkpoints/step-00000004"); }),
               {"step-00000004/manifest.json", "extra.data_start.step"});
}

}  // namespace
}  // namespace emox
