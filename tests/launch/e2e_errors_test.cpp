// What the emox program says and returns when something is wrong (design 4.11): 2 for the command, the recipe and the
// files that it names, found before the first step; 1 for what fails later.
#include <gtest/gtest.h>

#include <fstream>

#include "data/format/npy.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using test::CommandResult;

class ProgramErrors : public testing::Test {
 protected:
  ProgramErrors() {
    Recipe r = test::tiny_recipe(test::make_text_sources(directory_.path()));
    r.eval.final = false;
    r.run.dir = (directory_.path() / "run").string();
    recipe_ = test::write_recipe(directory_.path() / "tiny.ini", r).string();
  }
  CommandResult emox(const std::string& arguments) const {
    return test::run_command("OMP_NUM_THREADS=1 " EMOX_BINARY " " + arguments);
  }
  CommandResult train(const std::string& overrides) const { return emox("train " + recipe_ + " " + overrides); }
  void expect(const CommandResult& result, int code, const std::vector<std::string>& parts) const {
    EXPECT_EQ(result.exit_code, code) << result.output;
    for (const std::string& part : parts)
      EXPECT_NE(result.output.find(part), std::string::npos) << "no '" << part << "' in:\n" << result.output;
  }
  /// A training file of 16-bit tokens in place of the sources.
  std::string source(const std::vector<std::uint16_t>& tokens) const {
    write_npy(directory_.path() / "tokens.npy", std::span<const std::uint16_t>(tokens));
    return "--data.source=all:1:" + (directory_.path() / "tokens.npy").string();
  }

  test::TemporaryDirectory directory_;
  std::string recipe_;
};

TEST_F(ProgramErrors, MisspeltNamesGetTheNearest) {
  expect(emox("trian " + recipe_), 2, {"unknown command trian: did you mean train?"});
  expect(train("--moe.num_expert=4"), 2,
         {"unknown key moe.num_expert on the command line: did you mean moe.num_experts?"});
  expect(train("--moe.pool=unifrom"), 2, {"moe.pool = unifrom", "uniform"});
  expect(emox("train " + recipe_.substr(0, recipe_.size() - 5) + ".ini"), 2,
         {"cannot read the recipe", "did you mean " + recipe_});
  EXPECT_FALSE(fs::exists(directory_.path() / "run"));
}

TEST_F(ProgramErrors, ValuesThatCannotBe) {
  expect(train("--moe.top_k=0"), 2, {"moe.top_k = 0", "out of range: use 1 to 65536"});
  expect(train("--model.heads=3"), 2,
         {"model.heads = 3 does not divide model.d_model = 32", "nearest valid", "2 or 4"});
  expect(train("--moe.top_k=10"), 2, {"moe.top_k = 10 is more than moe.num_experts = 9; use 1 to 9"});
  expect(train("--moe.pool_min=1"), 2,
         {"moe.pool_min = 1 is smaller than the 2 routed experts that a token picks", "use at least 2"});
  expect(train("--model.vocab_size=200"), 2, {"model.vocab_size = 200", "use at least 257"});
  expect(train("--parallel.expert_parallel=4"), 2, {"parallel.expert_parallel = 4", "use expert_parallel = 1"});
  expect(train("--parallel.communicator=nccl"), 2,
         {"parallel.communicator = nccl moves data between GPUs", "computes on the CPU", "auto or mpi"});
  EXPECT_FALSE(fs::exists(directory_.path() / "run"));
}

TEST_F(ProgramErrors, ATraceThatCannotBeWritten) {
  const std::string folder = directory_.path().string();
  expect(
      train("--trace " + folder + "/no/t.json"), 2,
      {"--trace=" + folder + "/no/t.json cannot be written (No such file or directory)", "check that its directory"});
  expect(train("--trace=" + folder), 2, {"--trace=" + folder + " is a directory: name a file in it"});
  expect(train("--trace="), 2, {"--trace needs a file: write --trace=FILE"});
  expect(train("--trace"), 2, {"--trace needs a value"});
  expect(train("--trace=" + folder + "/x --record-pools=" + folder + "/x"), 2,
         {"name the same file", "each needs its own"});
  EXPECT_FALSE(fs::exists(directory_.path() / "run"));
}

TEST_F(ProgramErrors, TokenFilesThatCannotBeRead) {
  const fs::path file = directory_.path() / "tokens.npy";
  const std::string all = "--data.source=all:1:" + file.string();
  expect(train(all), 2, {"data.source all", file.string(), "does not exist"});
  std::ofstream(file).close();
  expect(train(all), 2, {file.string(), "empty"});
  source(std::vector<std::uint16_t>(1000, 65));
  fs::resize_file(file, fs::file_size(file) - 100);
  expect(train(all), 2, {file.string(), "1000"});
  source(std::vector<std::uint16_t>(1000, 65));
  {
    std::fstream f(file, std::ios::in | std::ios::out | std::ios::binary);
    std::string start(64, ' ');
    f.read(start.data(), 64);
    const auto at = start.find("<u2");
    ASSERT_NE(at, std::string::npos);
    f.seekp(static_cast<std::streamoff>(at));
    f << "<f2";
  }
  expect(train(all), 2, {file.string(), "<f2"});
  expect(train(source(std::vector<std::uint16_t>(63, 65))), 2, {"holds 63 tokens, fewer than one sequence of 64"});
}

TEST_F(ProgramErrors, ATokenBeyondTheVocabularyIsNamed) {
  std::vector<std::uint16_t> tokens(64, 65);
  tokens[40] = 300;
  const CommandResult result = train(source(tokens));
  expect(result, 1, {(directory_.path() / "tokens.npy").string(), "40", "300", "257"});
  EXPECT_FALSE(fs::exists(directory_.path() / "run" / "checkpoints" / "step-00000001"));
}

// What was asked for and could not be written, and names that no file can have: said, and told by the exit code.
TEST_F(ProgramErrors, OutputThatCannotBeWrittenAndNamesThatCannotBe) {
  for (const std::string& command : {std::string("--help"), std::string("--version"), "plan --json " + recipe_})
    expect(emox(command + " > /dev/full"), 1, {"emox: ", "No space left on device"});
  expect(emox("train " + recipe_ + " --print-config > /dev/full"), 1, {"could not be written"});
  const std::string longest(300, 'n');
  for (const char* command : {"eval ", "checkpoint info ", "checkpoint verify "})
    expect(emox(command + longest), 2, {longest});
  expect(train("--run.dir=" + (directory_.path() / longest).string()), 2, {longest});
  expect(train("--run.dir=" + recipe_ + "/run"), 2, {recipe_ + "/run"});  // below a file
}

}  // namespace
}  // namespace emox
