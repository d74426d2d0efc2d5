// The command line: choosing a command, reading arguments, help screens, exit codes.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "launch/commands/command.h"
#include "launch/config/arguments.h"
#include "launch/config/fields.h"
#include "launch/config/recipe_file.h"
#include "launch/run/failure.h"
#include "runtime/core/error.h"
#include "runtime/files/files.h"
#include "tests/support/messages.h"
#include "tests/support/support.h"

namespace emox {
namespace {

struct Outcome {
  int code;
  std::string out, err;
};

Outcome emox(std::vector<std::string> args) {
  args.insert(args.begin(), "emox");
  std::vector<char*> argv;
  for (std::string& arg : args) argv.push_back(arg.data());
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  const int code = cli_main(static_cast<int>(argv.size()), argv.data());
  std::fflush(stdout);
  std::string out = testing::internal::GetCapturedStdout();
  return {code, std::move(out), testing::internal::GetCapturedStderr()};
}

void expect_screen(const std::string& text, std::size_t max_lines) {
  std::istringstream in(text);
  std::size_t lines = 0;
  for (std::string line; std::getline(in, line); ++lines) EXPECT_LE(line.size(), 80U) << line;
  EXPECT_GT(lines, 3U);
  EXPECT_LE(lines, max_lines) << text;
  EXPECT_EQ(text.back(), '\n');
}

TEST(Cli, OverviewFitsAScreenAndNamesEveryCommand) {
  for (const auto& args : std::vector<std::vector<std::string>>{{}, {"--help"}, {"-h"}, {"help"}}) {
    const Outcome outcome = emox(args);
    EXPECT_EQ(outcome.code, 0);
    EXPECT_EQ(outcome.err, "");
    expect_screen(outcome.out, 24);
    for (const Command& command : commands())
      EXPECT_NE(outcome.out.find(std::string("  ") + command.name + " "), std::string::npos);
  }
}

TEST(Cli, EveryCommandHasAHelpScreen) {
  for (const Command& command : commands()) {
    SCOPED_TRACE(command.name);
    const Outcome outcome = emox({command.name, "--help"});
    EXPECT_EQ(outcome.code, 0);
    expect_screen(outcome.out, 24);
    EXPECT_TRUE(outcome.out.starts_with(std::string("usage: emox ") + command.name)) << outcome.out;
    EXPECT_EQ(emox({"help", command.name}).out, outcome.out);
    EXPECT_EQ(emox({command.name, "--json", "-h"}).out, outcome.out);
  }
}

// The help of train shows keys by name: they must exist.
TEST(Cli, KeysInHelpExist) {
  const auto keys = key_names();
  std::istringstream words(help_train() + help_overview());
  int found = 0;
  for (std::string word; words >> word;) {
    if (!word.starts_with("--") || word.find('.') == std::string::npos || word.find("section.key") == 2) continue;
    const std::string key = word.substr(2, word.find('=') - 2);
    EXPECT_NE(std::find(keys.begin(), keys.end(), key), keys.end()) << key;
    ++found;
  }
  EXPECT_GE(found, 8);
}

TEST(Cli, HelpOfTrainMentionsTheTrace) { EXPECT_NE(help_train().find("  --trace FILE "), std::string::npos); }

TEST(Cli, SectionHelpShowsEveryKeyWithDefaultAndRange) {
  const Outcome moe = emox({"train", "--help", "moe"});
  EXPECT_EQ(moe.code, 0);
  expect_screen(moe.out, 60);
  EXPECT_NE(moe.out.find("top_k = 4"), std::string::npos);
  EXPECT_NE(moe.out.find("1 to 65536"), std::string::npos);
  EXPECT_NE(moe.out.find("off, fixed, uniform or label"), std::string::npos);
  EXPECT_EQ(moe.out.find("learning_rate"), std::string::npos);
  const Outcome all = emox({"train", "recipe.ini", "--help", "all"});
  expect_screen(all.out, 1000);
  for (const std::string& key : key_names())
    EXPECT_NE(all.out.find("  " + key.substr(key.find('.') + 1) + " ="), std::string::npos) << key;
  for (const std::string& section : section_names()) EXPECT_NE(all.out.find("[" + section + "]"), std::string::npos);
  const Outcome wrong = emox({"train", "--help", "meo"});
  EXPECT_EQ(wrong.code, 2);
  EXPECT_NE(wrong.err.find("unknown section meo: did you mean moe?"), std::string::npos) << wrong.err;
}

TEST(Cli, VersionIsTheProjects) {
  const std::string text = try_read_text(std::string(EMOX_SOURCE_DIR) + "/CMakeLists.txt").text;
  const std::string version = emox({"--version"}).out;
  ASSERT_TRUE(version.starts_with("emox ") && version.size() > 6);
  EXPECT_NE(text.find("project(emox VERSION " + version.substr(5, version.size() - 6) + " "), std::string::npos)
      << version;
}

TEST(Cli, MisspeltCommandGetsTheNearestName) {
  const Outcome outcome = emox({"trian", "x.ini"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_EQ(outcome.out, "");
  EXPECT_TRUE(outcome.err.starts_with("emox: unknown command trian: did you mean train?")) << outcome.err;
  EXPECT_EQ(emox({"docter"}).err.find("emox: unknown command docter: did you mean doctor?"), 0U);
  EXPECT_NE(emox({"sweep"}).err.find("not part of this version"), std::string::npos);
  EXPECT_EQ(emox({"sweep"}).code, 2);
  EXPECT_EQ(emox({"--verison"}).code, 2);
  EXPECT_EQ(emox({"help", "trian"}).code, 2);
}

TEST(Cli, ExceptionsBecomeExitCodes) {
  const auto run = [](const std::function<int()>& body) {
    testing::internal::CaptureStderr();
    const int code = guarded(body);
    return Outcome{code, "", testing::internal::GetCapturedStderr()};
  };
  EXPECT_EQ(run([] { return 75; }).code, 75);
  const Outcome usage = run([]() -> int { fail<UsageError>("bad {}", "key"); });
  EXPECT_EQ(usage.code, 2);
  EXPECT_EQ(usage.err, "emox: bad key\n");
  set_error_rank(3);
  const Outcome io = run([]() -> int { fail<IoError>("disk full"); });
  EXPECT_EQ(io.code, 1);
  EXPECT_TRUE(io.err.starts_with("emox: disk full [rank 3]")) << io.err;
  const Outcome other = run([]() -> int { throw std::runtime_error("odd"); });
  EXPECT_EQ(other.code, 1);
  EXPECT_EQ(other.err, "emox: odd [rank 3]\n");
  set_error_rank(0);
}

const ArgumentRules kRules{.command = "emox train",
                           .flags = {"--json", "--print-config"},
                           .options = {"--trace"},
                           .overrides = true,
                           .min_positional = 1,
                           .max_positional = 1,
                           .positional = "RECIPE.ini"};

std::string args_error(const std::vector<std::string>& args, const ArgumentRules& rules = kRules) {
  return test::usage_error([&] { parse_args(args, rules); });
}

TEST(Arguments, AreSplit) {
  const Arguments parsed = parse_args(
      {"--train.steps", "5", "r.ini", "--json", "--trace=f.json", "--moe.pool=off", "--train.eps", "-1"}, kRules);
  EXPECT_EQ(parsed.positional, std::vector<std::string>{"r.ini"});
  EXPECT_EQ(parsed.overrides, (std::vector<std::string>{"--train.steps=5", "--moe.pool=off", "--train.eps=-1"}));
  EXPECT_TRUE(parsed.has("--json"));
  EXPECT_FALSE(parsed.has("--print-config"));
  EXPECT_EQ(parsed.value("--trace"), "f.json");
  EXPECT_EQ(parsed.value("--none", "x"), "x");
  EXPECT_EQ(parse_args({"--", "--odd.ini"}, kRules).positional, std::vector<std::string>{"--odd.ini"});
  const Recipe recipe = parse_recipe("", "r.ini", parse_args({"r.ini", "--train.steps", "5"}, kRules).overrides);
  EXPECT_EQ(recipe.train.steps, 5);
}

TEST(Arguments, MistakesAreNamed) {
  EXPECT_EQ(args_error({"r.ini", "--jsno"}), "emox train: unknown option --jsno: did you mean --json?");
  EXPECT_EQ(args_error({"r.ini", "--steps=5"}), "emox train: unknown option --steps: did you mean --train.steps?");
  EXPECT_EQ(args_error({"r.ini", "--lr=1"}), "emox train: unknown option --lr: did you mean --train.learning_rate?");
  EXPECT_EQ(args_error({"r.ini", "-j"}).find("emox train: unknown option -j"), 0U);
  EXPECT_EQ(args_error({"r.ini", "--json=1"}), "emox train: --json takes no value (got '--json=1')");
  EXPECT_EQ(args_error({"r.ini", "--trace"}), "emox train: --trace needs a value: write --trace=VALUE");
  EXPECT_EQ(args_error({"r.ini", "--train.steps", "--json"}),
            "emox train: --train.steps needs a value: write --train.steps=VALUE");
  EXPECT_EQ(args_error({}), "emox train: missing argument; usage: emox train RECIPE.ini");
  EXPECT_EQ(args_error({"a", "b"}), "emox train: unexpected argument 'b'; usage: emox train RECIPE.ini");
  EXPECT_EQ(args_error({"--moe.top_k=4"}, {.command = "emox doctor", .flags = {"--json"}})
                .find("emox doctor: unknown option --moe.top_k"),
            0U);
}

TEST(Cli, CorpusTakesTextAndSaysWhatItDropped) {
  const test::TemporaryDirectory directory;
  const std::string in = (directory.path() / "in.jsonl").string(), out = (directory.path() / "out").string();
  std::ofstream file(in);
  for (int i = 0; i < 500; ++i) {
    file << R"({"text": ")";
    for (int k = 0; k < 40; ++k) file << (i * 7919 + k * k * 104729) % 1000003 << ' ';
    file << "\"}\n";
  }
  file << "no JSON\n";
  file.close();
  EXPECT_EQ(emox({"corpus", "--text", "a=" + in}).code, 2) << "--output is missing";
  EXPECT_EQ(emox({"corpus", "--text", "--output", out}).code, 2);
  EXPECT_EQ(emox({"corpus", "--text", "a=" + in, "--output", out, "--packages", out}).code, 2);
  EXPECT_NE(emox({"corpus", "--text=\xFF=" + in, "--output", out}).err.find("the label '\\xFF' cannot be used"),
            std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(out));
  const Outcome built = emox({"corpus", "--text", "a=" + in, "b=" + in, "--output", out});
  EXPECT_EQ(built.code, 2) << "nothing is left of b: all of it is in a";
  EXPECT_FALSE(std::filesystem::exists(out));
  const Outcome whole = emox({"corpus", "--output", out, "--text=a=" + in, "--text", "a=" + in});
  EXPECT_EQ(whole.code, 0) << whole.err;
  EXPECT_NE(whole.out.find("--data.source=a:1:" + out + "/a"), std::string::npos) << whole.out;
  EXPECT_NE(whole.out.find("dropped 2 lines without"), std::string::npos) << whole.out;
  EXPECT_NE(whole.out.find("500 duplicates"), std::string::npos) << whole.out;
}

}  // namespace
}  // namespace emox
