// Recipes that ship: they parse, fit together, print and parse back (released_recipes_test.cpp: the published values).
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "launch/config/changes.h"
#include "launch/config/fields.h"
#include "launch/config/recipe_file.h"
#include "runtime/core/error.h"
#include "runtime/core/quoted.h"

namespace emox {
namespace {

std::string recipe_path(const std::string& name) {
  return std::string(EMOX_SOURCE_DIR) + "/launch/recipes/" + name + ".ini";
}

// Every key as "name = value", in order.
std::vector<std::string> lines_of(Recipe recipe) {
  std::vector<std::string> lines;
  for (const Field& field : fields_of(recipe))
    for (const std::string& value : field.values()) lines.push_back(field.name() + " = " + value);
  return lines;
}

std::vector<std::string> shipped() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(std::string(EMOX_SOURCE_DIR) + "/launch/recipes"))
    if (entry.path().extension() == ".ini") names.push_back(entry.path().stem().string());
  return names;
}

TEST(Recipes, EveryShippedRecipeIsValid) {
  const auto names = shipped();
  ASSERT_GE(names.size(), 9U);
  for (const std::string& name : names) {
    SCOPED_TRACE(name);
    const Recipe recipe = load_recipe(recipe_path(name));
    EXPECT_NO_THROW(recipe.validate(static_cast<int>(std::max<std::int64_t>(recipe.parallel.expert_parallel, 1))));
    EXPECT_EQ(recipe.run.name, name);
    EXPECT_EQ(recipe.run.dir, "runs/" + name);
  }
}

TEST(Recipes, PrintedRecipeParsesBack) {
  for (const std::string& name : shipped()) {
    SCOPED_TRACE(name);
    const Recipe recipe = load_recipe(recipe_path(name));
    EXPECT_EQ(lines_of(parse_recipe(to_ini(recipe), "other.ini")), lines_of(recipe));
    EXPECT_EQ(lines_of(parse_recipe(to_ini(recipe, true), "other.ini")), lines_of(recipe));
  }
}

// The defaults would hide a key that is printed but not read, so every key gets a value of its own.
// Paths and labels are bytes: a recipe keeps them all, as valid UTF-8 on one line.
TEST(Recipes, NamesOfAnyBytesSurviveTheRoundTrip) {
  Recipe recipe;
  std::string all;
  for (int c = 1; c < 256; ++c) all += static_cast<char>(c);
  recipe.data.source = {"a:1:" + all, "b:1: # ", "\"c\":1:\xC3\xA4\\x", "d:1:plain\\ \xE2\x82\xAC"};
  recipe.run.dir = "\"";
  recipe.run.warm_start = "\xED\xA0\x80\xF4\x90\x80\x80\xC0\x80";  // no characters: a surrogate, too large, too long
  const std::string text = to_ini(recipe);
  EXPECT_TRUE(is_utf8(text));
  EXPECT_NE(text.find("source = d:1:plain\\ \xE2\x82\xAC\n"), std::string::npos) << "what can be is as it was";
  const Recipe again = parse_recipe(text, "x.ini");
  EXPECT_EQ(again.data.source, recipe.data.source);
  EXPECT_EQ(again.run.dir, recipe.run.dir);
  EXPECT_EQ(again.run.warm_start, recipe.run.warm_start);
  EXPECT_EQ(parse_recipe("", "x.ini", {"--run.dir=" + all}).run.dir, all);
}

TEST(Recipes, EveryKeySurvivesTheRoundTrip) {
  Recipe recipe;
  int count = 0;
  for (const Field& field : fields_of(recipe)) {
    ++count;
    const std::string before = field.values().empty() ? "" : field.values().front();
    for (const char* text : {"23",        "0.123456789012345678",
                             "true",      "fixed",
                             "reference", "bias",
                             "local",     "constant",
                             "hold",      "skip",
                             "optimizer", "dolma2",
                             "mpi",       "two_level",
                             "random",    "1e-5",
                             "uint16",    "tune",
                             "cuda",      "f32"}) {
      try {
        field.set(text, "test");
      } catch (const std::exception&) {
        continue;  // not a value of this key
      }
      if (!field.values().empty() && field.values().front() != before) break;
    }
    if (before == "true") field.set("false", "test");
    EXPECT_NE(field.values().front(), before) << field.name();
  }
  EXPECT_EQ(count, static_cast<int>(key_names().size()));
  EXPECT_NE(lines_of(recipe), lines_of(Recipe{}));
  EXPECT_EQ(lines_of(parse_recipe(to_ini(recipe), "x.ini")), lines_of(recipe));
}

TEST(Recipes, RealNumbersKeepEveryBit) {
  Recipe recipe = load_recipe(recipe_path("tiny"));
  recipe.train.learning_rate = 0.1 + 0.2;
  recipe.train.eps = 1.0 / 3.0 * 1e-9;
  const Recipe again = parse_recipe(to_ini(recipe), "x.ini");
  EXPECT_EQ(again.train.learning_rate, recipe.train.learning_rate);
  EXPECT_EQ(again.train.eps, recipe.train.eps);
}

TEST(Recipes, JsonHoldsEveryKeyWithItsType) {
  const auto json = to_json(load_recipe(recipe_path("tiny")));
  for (const std::string& name : key_names()) {
    const auto dot = name.find('.');
    EXPECT_TRUE(json.at(name.substr(0, dot)).contains(name.substr(dot + 1))) << name;
  }
  EXPECT_EQ(json["moe"]["num_experts"], 25);
  EXPECT_EQ(json["moe"]["pool"], "uniform");
  EXPECT_EQ(json["train"]["learning_rate"], 1e-3);
  EXPECT_EQ(json["model"]["intra_document_attention"], true);
  EXPECT_TRUE(json["data"]["source"].is_array());
}

TEST(Recipes, TinyDividesByManyRankCounts) {
  const Recipe tiny = load_recipe(recipe_path("tiny"));
  EXPECT_EQ(tiny.model.num_experts, 25);
  EXPECT_EQ(tiny.model.shared_experts, 1);
  EXPECT_EQ(tiny.model.top_k, 4);
  EXPECT_EQ(tiny.train.batch_sequences, 24);
  EXPECT_LE(tiny.train.learning_rate, 1e-3);
  for (const int ranks : {1, 2, 3, 4, 6, 8}) EXPECT_NO_THROW(tiny.validate(ranks));
  EXPECT_EQ(load_recipe(recipe_path("quickstart")).data.source, tiny.data.source);
}

// Without a launcher, and on any number of ranks that the batch allows.
TEST(Recipes, QuickstartAndStudyRunOnAnyNumberOfRanks) {
  for (const char* name : {"quickstart", "study-mini", "tiny"}) {
    const Recipe r = load_recipe(recipe_path(name));
    for (int ranks = 1; ranks <= r.train.batch_sequences; ++ranks) EXPECT_NO_THROW(r.validate(ranks)) << name;
  }
  EXPECT_EQ(load_recipe(recipe_path("quickstart")).parallel.expert_parallel, 0);
}

TEST(Recipes, AutoIsAValueOfItsOwn) {
  Recipe r = load_recipe(recipe_path("tiny"), {"--parallel.expert_parallel=auto"});
  EXPECT_EQ(r.parallel.expert_parallel, 0);
  EXPECT_NE(to_ini(r).find("expert_parallel = auto\n"), std::string::npos);
  EXPECT_EQ(to_json(r)["parallel"]["expert_parallel"], "auto");
  r.parallel.dispatch = DispatchKind::Local;
  EXPECT_NO_THROW(r.validate(4));
  for (const char* value : {"0", "Auto", "-1", "1.5"}) {
    try {
      load_recipe(recipe_path("tiny"), {std::string("--parallel.expert_parallel=") + value});
      ADD_FAILURE() << value;
    } catch (const UsageError& e) {
      EXPECT_NE(e.message().find("auto, or 1 to 65536"), std::string::npos) << e.message();
    }
  }
  EXPECT_THROW(load_recipe(recipe_path("tiny"), {"--train.steps=auto"}), UsageError);
}

// A dense model that is not told how wide it is does the work of a token's experts; a MoE has no such width.
TEST(Recipes, ADenseModelIsAsWideAsATokensExperts) {
  EXPECT_EQ(load_recipe(recipe_path("tiny")).model.dense_ff, 0);
  EXPECT_EQ(load_recipe(recipe_path("tiny"), {"--moe.num_experts=0"}).model.dense_ff, 4 * 48);
  EXPECT_EQ(load_recipe(recipe_path("tiny"), {"--moe.num_experts=0", "--moe.top_k=3"}).model.dense_ff, 3 * 48);
  EXPECT_EQ(load_recipe(recipe_path("tiny"), {"--moe.num_experts=0", "--model.dense_ff=7"}).model.dense_ff, 7);
  Recipe dense = load_recipe(recipe_path("tiny"), {"--moe.num_experts=0", "--parallel.expert_parallel=1"}),
         moe = load_recipe(recipe_path("tiny"));
  EXPECT_NO_THROW(dense.validate(1));
  dense.model.dense_ff = 0;
  EXPECT_THROW(dense.validate(1), UsageError);
  Recipe older = moe;  // a run of before, whose recipe has the width that it did not use
  older.model.dense_ff = 1024;
  EXPECT_TRUE(compare_recipes(older, moe, {}).made.empty());
  dense.model.dense_ff = 192;
  Recipe wider = dense;
  wider.model.dense_ff = 256;
  EXPECT_THROW((void)compare_recipes(dense, wider, {}), UsageError);
}

TEST(Recipes, TokensRoundUpToSteps) {
  Recipe recipe = load_recipe(recipe_path("emo-1b14b"), {"--train.steps=0", "--train.tokens=1e12"});
  EXPECT_NO_THROW(recipe.validate(1));
  EXPECT_EQ(recipe.total_steps(), 238419);
  recipe.train.tokens = 130'000'000'000;
  EXPECT_EQ(recipe.total_steps(), 30995);
  recipe.train.tokens = 4194304 * 10;
  EXPECT_EQ(recipe.total_steps(), 10);
}

TEST(Recipes, AnnealsContinueTheirRuns) {
  for (const char* name : {"emo-1b14b-anneal", "stdmoe-1b14b-anneal", "stdmoe-1b14b-emo-anneal"}) {
    SCOPED_TRACE(name);
    const Recipe anneal = load_recipe(recipe_path(name));
    EXPECT_EQ(anneal.train.anneal_from_step, 238419);
    EXPECT_EQ(anneal.total_steps() - anneal.train.anneal_from_step, 11920);
    EXPECT_EQ(anneal.train.learning_rate, 4e-4);
    EXPECT_EQ(anneal.train.schedule, ScheduleKind::Linear);
    const bool emo = std::string(name) == "emo-1b14b-anneal";
    const Recipe base = load_recipe(recipe_path(emo ? "emo-1b14b" : "stdmoe-1b14b"));
    EXPECT_NO_THROW(check_resume(base, anneal));
    EXPECT_NO_THROW(check_resume(anneal, anneal));
  }
  EXPECT_EQ(load_recipe(recipe_path("stdmoe-1b14b-emo-anneal")).model.pool, PoolMode::Uniform);
}

}  // namespace
}  // namespace emox
