// Every mistake in a recipe or an override is refused with the key, the value, where it was set and what to do.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <set>

#include "launch/config/aliases.h"
#include "launch/config/fields.h"
#include "launch/config/nearest.h"
#include "launch/config/recipe_file.h"
#include "launch/config/unused_keys.h"
#include "runtime/core/error.h"
#include "tests/support/messages.h"
#include "tests/support/support.h"

namespace emox {
namespace {

using test::expect_parts, test::usage_error;

const std::string kGood = "[train]\nsteps = 10\n[data]\nsource = a:1:x\n";

std::string parse_error(const std::string& text, const std::vector<std::string>& overrides = {}) {
  return usage_error([&] { parse_recipe(text, "r.ini", overrides); });
}

std::string check_error(const std::vector<std::string>& overrides, int ranks = 1) {
  return usage_error([&] { parse_recipe(kGood, "r.ini", overrides).validate(ranks); });
}

TEST(RecipeErrors, UnknownKeyGetsTheNearestName) {
  EXPECT_EQ(parse_error("# c\n[moe]\nnum_expert = 4\n"),
            "unknown key moe.num_expert in r.ini:3: did you mean moe.num_experts?");
  EXPECT_EQ(parse_error("", {"--moe.num_expert=4"}),
            "unknown key moe.num_expert on the command line: did you mean moe.num_experts?");
  EXPECT_EQ(parse_error("", {"--moe.num_exp", "4"}),
            "unknown key moe.num_exp on the command line: did you mean moe.num_experts?");
  EXPECT_EQ(parse_error("[model]\ntop_k = 4\n"), "unknown key model.top_k in r.ini:2: did you mean moe.top_k?");
  EXPECT_EQ(parse_error("steps = 4\n"), "unknown key steps in r.ini:1: did you mean train.steps?");
  EXPECT_EQ(parse_error("", {"--meo.top_k=4"}), "unknown key meo.top_k on the command line: did you mean moe.top_k?");
  // A beginning of a key is not the key.
  expect_parts(parse_error("", {"--train.batch=4"}), {"unknown key train.batch"});
}

TEST(RecipeErrors, UnknownSection) {
  EXPECT_EQ(parse_error("[meo]\ntop_k = 4\n"), "unknown section [meo] in r.ini:1: did you mean [moe]?");
  EXPECT_EQ(parse_error("\n[trian]\n"), "unknown section [trian] in r.ini:2: did you mean [train]?");
  expect_parts(parse_error("[]\n"), {"unknown section []"});
}

TEST(RecipeErrors, UnreadableLineIsNamed) {
  EXPECT_EQ(parse_error("[moe]\n\ntop_k 4\n"), "r.ini:3: cannot read 'top_k 4': write [section] or key = value");
  EXPECT_EQ(parse_error("[moe\n"), "r.ini:1: cannot read '[moe': write [section] or key = value");
  expect_parts(parse_error("[moe]\n= 4\n"), {"r.ini:2"});
  expect_parts(parse_error("", {"--train.steps"}), {"cannot read the command line", "train.steps"});
  expect_parts(parse_error("", {"train.steps=4"}), {"cannot read 'train.steps=4'", "--section.key=value"});
}

TEST(RecipeErrors, OutOfRange) {
  EXPECT_EQ(parse_error("[moe]\ntop_k = 0\n"), "moe.top_k = 0 (r.ini:2) is out of range: use 1 to 65536");
  EXPECT_EQ(parse_error("", {"--moe.top_k=65537"}), "moe.top_k = 65537 (command line) is out of range: use 1 to 65536");
  EXPECT_EQ(parse_error("", {"--train.beta1=1"}), "train.beta1 = 1 (command line) is out of range: use 0 to 0.999999");
  EXPECT_EQ(parse_error("", {"--train.steps=-1"}), "train.steps = -1 (command line) is out of range: use 0 or more");
  expect_parts(parse_error("", {"--train.learning_rate=nan"}), {"train.learning_rate = nan", "out of range"});
  expect_parts(parse_error("", {"--train.learning_rate=inf"}), {"out of range"});
}

TEST(RecipeErrors, WrongType) {
  EXPECT_EQ(parse_error("[train]\nsteps = ten\n"), "train.steps = ten (r.ini:2) is not an integer: use 0 or more");
  expect_parts(parse_error("", {"--train.steps=1.5"}), {"is not an integer"});
  expect_parts(parse_error("", {"--train.steps=10x"}), {"is not an integer"});
  expect_parts(parse_error("[train]\nsteps =\n"), {"train.steps =  (r.ini:2) is not an integer"});
  expect_parts(parse_error("", {"--train.steps=1e30"}), {"is not an integer"});
  expect_parts(parse_error("", {"--train.eps=small"}), {"is not a number", "1e-30 to 1"});
  expect_parts(parse_error("", {"--eval.final=maybe"}), {"eval.final = maybe", "true or false"});
  EXPECT_EQ(parse_error("", {"--moe.pool=unifrom"}),
            "moe.pool = unifrom (command line) is not one of off, fixed, uniform or label: did you mean uniform?");
  expect_parts(parse_error("[run]\ndir = \"a\\x\"\n"), {"run.dir (r.ini:2)", "begins with a double quote"});
  EXPECT_EQ(parse_recipe("", "r.ini", {"--train.tokens=5e9"}).train.tokens, 5'000'000'000);
}

TEST(RecipeErrors, KeyTwiceInOneFile) {
  EXPECT_EQ(parse_error("[moe]\ntop_k = 4\n[train]\n[moe]\ntop_k = 5\n"),
            "moe.top_k is set twice, at r.ini:2 and r.ini:5; keep one");
}

TEST(RecipeErrors, NumbersThatDoNotFitTogether) {
  EXPECT_EQ(check_error({}), "(no UsageError)");
  expect_parts(check_error({"--model.d_model=96", "--model.heads=5"}),
               {"model.heads = 5", "model.d_model = 96", "4 or 6"});
  expect_parts(check_error({"--moe.top_k=40"}), {"moe.top_k = 40", "moe.num_experts = 32", "1 to 32"});
  expect_parts(check_error({"--moe.pool_min=2"}), {"moe.pool_min = 2", "3 routed experts", "at least 3"});
  expect_parts(check_error({"--moe.pool=fixed", "--moe.pool_size=1"}), {"moe.pool_size = 1", "at least 3"});
  expect_parts(check_error({"--moe.eval_pool=1"}), {"moe.eval_pool = 1"});
  expect_parts(check_error({"--moe.pool=label", "--moe.pool_free_share=0.1"}), {"moe.pool = label", "leave them out"});
  expect_parts(check_error({"--moe.pool=label", "--moe.pool_free_tokens=0.1"}), {"pool_free_tokens", "leave them out"});
  expect_parts(check_error({"--moe.pool_from_step=5", "--moe.pool_until_step=5"}),
               {"moe.pool_until_step = 5", "moe.pool_from_step = 5"});
  expect_parts(check_error({"--model.layers=2", "--moe.pool_from_layer=2"}), {"moe.pool_from_layer = 2", "at most 1"});
  expect_parts(check_error({"--train.tokens=100"}), {"train.steps = 10", "train.tokens = 100", "both set"});
  expect_parts(check_error({"--train.steps=0"}), {"neither train.steps nor train.tokens"});
  expect_parts(check_error({"--train.warmup_steps=10"}), {"train.warmup_steps = 10", "0 to 9"});
  expect_parts(check_error({"--train.batch_sequences=3"}, 4), {"train.batch_sequences = 3", "4 ranks"});
  EXPECT_EQ(check_error({"--train.batch_sequences=4"}, 4), "(no UsageError)");
  expect_parts(check_error({"--model.vocab_size=256"}), {"model.vocab_size = 256", "at least 257"});
  expect_parts(check_error({"--data.tokenizer=dolma2"}), {"at least 100278"});
  expect_parts(check_error({"--run.name=a/b"}), {"run.name = 'a/b'"});
  expect_parts(check_error({"--checkpoint.every_steps=4", "--checkpoint.keep_every_steps=6"}),
               {"keep_every_steps = 6", "multiple of 4"});
  expect_parts(check_error({"--train.anneal_from_step=5"}), {"train.schedule = linear", "now cosine"});
  expect_parts(check_error({"--train.anneal_from_step=10", "--train.schedule=linear"}),
               {"not before the last step 10"});
  expect_parts(check_error({"--train.schedule=wsd"}), {"train.decay_steps = 0", "use 1 to 9", "of 10 steps"});
  expect_parts(check_error({"--train.schedule=wsd", "--train.warmup_steps=4", "--train.decay_steps=6"}),
               {"train.decay_steps = 6", "use 1 to 5", "4 are the warm-up"});
  EXPECT_EQ(check_error({"--train.schedule=wsd", "--train.warmup_steps=4", "--train.decay_steps=5"}),
            "(no UsageError)");
  expect_parts(check_error({"--run.change=train.learning_rat"}),
               {"unknown key train.learning_rat", "did you mean train.learning_rate?"});
  expect_parts(check_error({"--run.change=train.steps,model.layers"}),
               {"run.change = model.layers", "the shape of the model", "moe.num_experts", "data.tokenizer"});
  expect_parts(check_error({"--data.source=no-weight"}), {"no-weight"});
  expect_parts(usage_error([] { parse_recipe("[train]\nsteps = 1\n", "r.ini").validate(1); }),
               {"data.source", "label:weight:path"});
}

TEST(RecipeErrors, ParallelChoicesOfThisVersion) {
  expect_parts(check_error({"--parallel.communicator=nccl", "--run.device=cpu"}),
               {"nccl moves data between GPUs", "run.device = cpu", "auto or mpi"});
  expect_parts(check_error({"--parallel.communicator=self"}, 2), {"self", "2"});
  expect_parts(check_error({"--parallel.expert_parallel=4"}),
               {"parallel.expert_parallel = 4", "1 = 4 x data_parallel", "use expert_parallel = 1", "start 4 ranks"});
  EXPECT_EQ(check_error({"--parallel.expert_parallel=2"}, 2), "(no UsageError)");
  EXPECT_EQ(check_error({"--parallel.expert_parallel=2", "--parallel.dispatch=two_level"}, 4), "(no UsageError)");
  expect_parts(check_error({"--parallel.expert_parallel=2", "--parallel.dispatch=local"}, 2),
               {"parallel.dispatch = local", "expert_parallel is 2", "flat or two_level"});
  expect_parts(check_error({"--parallel.expert_parallel=2", "--moe.num_experts=0"}, 2), {"dense"});
  expect_parts(check_error({"--parallel.placement=file"}), {"placement_file"});
}

TEST(RecipeErrors, MissingFile) {
  test::TemporaryDirectory directory;
  const std::string good = (directory.path() / "quickstart.ini").string();
  std::ofstream(good) << kGood;
  const std::string wrong = (directory.path() / "quikstart.ini").string();
  expect_parts(usage_error([&] { load_recipe(wrong); }), {wrong, "no such file", "did you mean " + good});
  expect_parts(usage_error([&] { load_recipe(directory.path().string()); }), {"cannot read the recipe"});
  EXPECT_EQ(load_recipe(good).run.name, "quickstart");
}

TEST(Overrides, CommandLineWins) {
  const Recipe recipe =
      parse_recipe(kGood, "dir/my.ini", {"--train.steps=20", "--moe.pool", "off", "--train.steps=30"});
  EXPECT_EQ(recipe.train.steps, 30);
  EXPECT_EQ(recipe.model.pool, PoolMode::Off);
  EXPECT_EQ(recipe.run.name, "my");
  EXPECT_EQ(recipe.run.dir, "runs/my");
  EXPECT_EQ(parse_recipe(kGood, "my.ini", {"--run.name=other"}).run.dir, "runs/other");
  EXPECT_EQ(parse_recipe(kGood, "my.ini", {"--run.dir=/d"}).run.dir, "/d");
}

TEST(Overrides, ARepeatedKeyReplacesTheList) {
  using Strings = std::vector<std::string>;
  const std::string text = "[data]\nsource = a:1:x\nsource = b:2:y\n";
  EXPECT_EQ(parse_recipe(text, "r.ini").data.source, (Strings{"a:1:x", "b:2:y"}));
  EXPECT_EQ(parse_recipe(text, "r.ini", {"--data.source=c:1:z"}).data.source, (Strings{"c:1:z"}));
  EXPECT_EQ(parse_recipe(text, "r.ini", {"--data.source=c:1:z", "--data.source=d:1:w=1"}).data.source,
            (Strings{"c:1:z", "d:1:w=1"}));
}

TEST(ListChanges, EveryKeyButWhatNamesTheRun) {
  const Recipe before = parse_recipe(kGood, "r.ini");
  EXPECT_TRUE(list_changes(before, before).empty());
  const Recipe now = parse_recipe(kGood, "s.ini",
                                  {"--run.dir=d", "--run.warm_start=runs/r", "--run.warm_start_state=optimizer",
                                   "--run.seed=9", "--moe.pool=fixed", "--data.source=a:2:x", "--data.source=b:1:y"});
  EXPECT_EQ(list_changes(before, now), (std::vector<std::string>{"run.seed: 0 -> 9", "moe.pool: uniform -> fixed",
                                                                 "data.source: a:1:x -> a:2:x b:1:y"}));
}

TEST(Nearest, EditDistance) {
  EXPECT_EQ(edit_distance("", "abc"), 3U);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3U);
  EXPECT_EQ(edit_distance("unifrom", "uniform"), 1U);
  EXPECT_EQ(edit_distance("same", "same"), 0U);
  EXPECT_EQ(nearest("tarin", {"eval", "train", "bench"}), "train");
}

// The names of other programs, in whatever section they are written.
TEST(Nearest, KeysByTheirNamesElsewhere) {
  const std::pair<const char*, const char*> meant[] = {{"train.lr", "train.learning_rate"},
                                                       {"optimizer.lr", "train.learning_rate"},
                                                       {"train.LR", "train.learning_rate"},
                                                       {"train.batch_size", "train.batch_sequences"},
                                                       {"train.batch-size", "train.batch_sequences"},
                                                       {"model.seq_len", "model.sequence_length"},
                                                       {"train.seq_len", "model.sequence_length"},
                                                       {"train.wd", "train.weight_decay"},
                                                       {"train.warmup", "train.warmup_steps"},
                                                       {"moe.n_experts", "moe.num_experts"},
                                                       {"model.n_experts", "moe.num_experts"},
                                                       {"model.hidden_size", "model.d_model"},
                                                       {"model.n_layers", "model.layers"},
                                                       {"model.num_hidden_layers", "model.layers"},
                                                       {"model.d_ff", "moe.expert_ff"},
                                                       {"moe.num_experts_per_tok", "moe.top_k"},
                                                       {"model.top_k", "moe.top_k"},  // a key of another section
                                                       {"train.learning_rat", "train.learning_rate"}};  // a spelling
  for (const auto& [word, key] : meant) EXPECT_EQ(nearest_key(word, key_names()), key) << word;
  expect_parts(usage_error([] { parse_recipe(kGood, "r.ini", {"--train.lr=1e-3"}); }),
               {"unknown key train.lr on the command line", "did you mean train.learning_rate?"});
  expect_parts(usage_error([] { parse_recipe("[train]\nbatch_size = 4\n", "r.ini"); }),
               {"unknown key train.batch_size in r.ini:2", "did you mean train.batch_sequences?"});
}

// A key that is set and read by nothing is rarely what was meant.
TEST(UnusedKeys, AreSaidWithTheKeyThatTurnsThemOff) {
  const auto unused = [](const std::vector<std::string>& overrides) {
    return unused_keys(parse_recipe(kGood, "r.ini", overrides));
  };
  using Lines = std::vector<std::string>;
  EXPECT_EQ(unused({}), Lines{});
  EXPECT_EQ(unused({"--train.decay_steps=4"}),
            Lines{"train.decay_steps = 4 has no effect with train.schedule = cosine"});
  EXPECT_EQ(unused({"--train.decay_steps=4", "--train.schedule=wsd"}), Lines{});
  EXPECT_EQ(unused({"--moe.pool_size=9"}), Lines{"moe.pool_size = 9 has no effect with moe.pool = uniform"});
  EXPECT_EQ(unused({"--moe.pool_from_step=10"}),
            Lines{"moe.pool_from_step = 10 has no effect but to leave out all pools: the run ends at step 10"});
  EXPECT_EQ(unused({"--moe.bias_rate=1", "--moe.balance=none", "--moe.balance_weight=1"}),
            (Lines{"moe.bias_rate = 1 has no effect with moe.balance = none",
                   "moe.balance_weight = 1 has no effect with moe.balance = none"}));
  EXPECT_EQ(unused({"--parallel.placement_seed=3"}),
            Lines{"parallel.placement_seed = 3 has no effect with parallel.placement = block"});
  EXPECT_EQ(unused({"--model.dense_ff=64"}), Lines{"model.dense_ff = 64 has no effect in a model with experts"});
  EXPECT_EQ(unused({"--moe.pool_size=9", "--moe.pool=off"}), Lines{});  // compared with EMO, it keeps its keys
}

TEST(RecipeErrors, AByteOrderMarkIsNoPartOfTheFirstLine) {
  test::TemporaryDirectory directory;
  const auto path = directory.path() / "r.ini";
  std::ofstream(path) << "\xEF\xBB\xBF" << kGood;
  EXPECT_EQ(load_recipe(path.string(), {}).train.steps, 10);
}

TEST(Nearest, AliasesAreNoKeysAndMeanKeys) {
  const std::vector<std::string> keys = key_names();
  std::set<std::string_view> seen;
  for (const auto& [alias, key] : key_aliases()) {
    EXPECT_EQ(std::count(keys.begin(), keys.end(), key), 1) << alias << " -> " << key;
    EXPECT_TRUE(seen.insert(alias).second) << alias << " stands there twice";
    EXPECT_EQ(key_of_alias(alias), key) << "small letters and underscores only";
    for (const std::string& k : keys) EXPECT_NE(k.substr(k.find('.') + 1), alias) << "would never be asked for";
  }
  EXPECT_EQ(key_of_alias("nonsense"), "");
}

}  // namespace
}  // namespace emox
