// Every way in which a run may be asked to end, or its output may go away: what is saved, what is said, what is
// returned.
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "data/format/npy.h"
#include "data/format/token_file.h"
#include "runtime/files/files.h"
#include "tests/launch/tiny_program.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using test::CommandResult;

class Stopping : public test::TinyProgram {
 protected:
  Stopping() {
    recipe_.train.steps = 1000000;
    recipe_.checkpoint.every_steps = 0;
    write();
  }
  std::string start(const std::string& overrides = "") const {
    return "OMP_NUM_THREADS=1 " EMOX_BINARY " train " + path_ + " " + overrides;
  }
  /// Shell words that wait for `lines` lines in a file of the run, while the job is there.
  std::string wait_for(const std::string& file, std::int64_t lines) const {
    return "until [[ $(wc -l < " + (run() / file).string() + ") -ge " + std::to_string(lines) +
           " ]]; do kill -0 $job || exit 99; sleep 0.02; done 2>/dev/null; ";
  }
  std::int64_t steps_in(const std::string& file) const {
    std::ifstream in(run() / file);
    std::int64_t lines = 0;
    for (std::string line; std::getline(in, line);) ++lines;
    return lines;
  }
  bool saved(std::int64_t step) const {
    return fs::exists(run() / "checkpoints" / fmt::format("step-{:08}", step) / "manifest.json");
  }
};

TEST_F(Stopping, EverySignalSavesTheStepAndTheSameCommandGoesOn) {
  std::int64_t before = 0;
  for (const char* signal : {"HUP", "USR2", "TERM"}) {
    const CommandResult r = test::run_command(start() + "& job=$!; " + wait_for("metrics.jsonl", before + 2) +
                                              "kill -" + signal + " $job; wait $job");
    expect(r, 0, {std::string("stopped by SIG") + signal, "the same command goes on from there"});
    const std::int64_t steps = steps_in("metrics.jsonl");
    EXPECT_GT(steps, before);
    EXPECT_TRUE(saved(steps)) << steps;
    before = steps;
  }
}

// nohup: the terminal's end is not to reach the run.
TEST_F(Stopping, AnIgnoredHangupIsLeftAlone) {
  const CommandResult r = test::run_command("trap \"\" HUP; " + start() + "& job=$!; " + wait_for("metrics.jsonl", 2) +
                                            "kill -HUP $job; have=$(wc -l < " + (run() / "metrics.jsonl").string() +
                                            "); " + wait_for("metrics.jsonl", 60) + "kill -USR1 $job; wait $job");
  expect(r, 0, {"stopped by SIGUSR1"});
  EXPECT_GE(steps_in("metrics.jsonl"), 60);
}

// A launcher may hand a signal on as soon as the process is there.
TEST_F(Stopping, ASignalAtAnyMomentOfTheStartIsTaken) {
  for (const char* delay : {"0", "0.01", "0.03", "0.1"}) {
    const CommandResult r =
        test::run_command("trap \"\" USR1; " EMOX_BINARY " train " + path_ + " & job=$!; sleep " + delay +
                          "; while kill -USR1 $job 2>/dev/null; do sleep 0.05; done; wait $job");
    expect(r, 0, {"stopped by SIGUSR1"});
  }
}

TEST_F(Stopping, ALostReaderEndsNothing) {
  const CommandResult r = test::run_command("{ " + start("--run.stop_after_step=40") + " 2>&1; echo $? > " +
                                            (directory_.path() / "code").string() + "; } | head -1; cat " +
                                            (directory_.path() / "code").string());
  EXPECT_EQ(r.output.substr(r.output.size() - 2), "0\n") << r.output;
  EXPECT_EQ(steps_in("metrics.jsonl"), 40);
  EXPECT_TRUE(saved(40));
  const std::string log = try_read_text(run() / "log" / "rank-00000.txt").text;
  EXPECT_NE(log.find("stopped after step 40"), std::string::npos) << log;
}

TEST_F(Stopping, OutputThatCannotBeWrittenIsAnError) {
  expect(emox("train " + path_ + " --print-config > /dev/full"), 1, {"what the command printed could not be written"});
  // A reader that has seen enough needs no message.
  const CommandResult r = test::run_command("{ " EMOX_BINARY " --help; echo code $? >&2; } | true");
  EXPECT_TRUE(r.output == "code 1\n" || r.output == "code 0\n") << r.output;  // 0: written before the reader left
  EXPECT_EQ(emox("help train | head -1").output, "usage: emox train RECIPE.ini [--section.key=value]...\n");
}

TEST_F(Stopping, ALimitOnFilesIsAnErrorAndNoSignal) {
  const CommandResult r = test::run_command("ulimit -f 100; " + start("--run.stop_after_step=3"));
  expect(r, 1, {"File too large"});
}

// What keeps nothing for later ends as any program does.
TEST_F(Stopping, OtherCommandsEndAtOnce) {
  const CommandResult r = test::run_command(EMOX_BINARY " bench step " + path_ +
                                            " --steps 1000000 & job=$!; sleep 0.5; kill -TERM $job; wait $job");
  EXPECT_EQ(r.exit_code, 128 + SIGTERM) << r.output;
}

TEST_F(Stopping, TheTimeOfTheJobIsALimit) {
  // The start counts, and on a busy machine it may take longer than the first limit.
  std::int64_t steps = 0;
  for (const char* minutes : {"0.03", "0.1", "0.3"}) {
    if (steps > 0) break;
    expect(emox("train " + path_ + " --run.stop_after_minutes=" + minutes), 0,
           {std::string("stopped after ") + minutes + " minutes (run.stop_after_minutes)", "the same command goes on"});
    steps = steps_in("metrics.jsonl");
  }
  EXPECT_GT(steps, 0);
  EXPECT_TRUE(saved(steps));
  // Over before the first step: nothing is done, and nothing is lost.
  expect(emox("train " + path_ + " --run.stop_after_minutes=0.000001"), 0,
         {fmt::format("before step {}, with nothing new to save", steps + 1)});
  EXPECT_EQ(steps_in("metrics.jsonl"), steps);
}

TEST_F(Stopping, CheckpointsComeByTheClock) {
  expect(
      emox("train " + path_ + " --run.stop_after_step=5 --checkpoint.every_minutes=0.0000001 --checkpoint.keep_last=9"),
      0, {});
  for (int step = 1; step <= 5; ++step) EXPECT_TRUE(saved(step)) << step;
  expect(emox("train " + path_ + " --run.stop_after_step=9 --checkpoint.every_minutes=1000 --checkpoint.keep_last=9"),
         0, {});
  for (int step = 6; step <= 8; ++step) EXPECT_FALSE(saved(step)) << step;
  EXPECT_TRUE(saved(9));
}

TEST_F(Stopping, AnEvaluationThatAnEarlierJobLeftOutIsMadeUpFor) {
  recipe_.train.steps = 4, recipe_.eval.every_steps = 2, recipe_.data.eval_documents = 3;
  write();
  const std::string lines = (run() / "eval.jsonl").string();
  const auto content = [&] { return test::run_command("cat " + lines).output; };
  expect(emox("train " + path_ + " --run.stop_after_step=2"), 0, {"held-out loss after step 2"});
  const std::string two = content();
  // As if the first job had been killed between its save and its evaluation.
  std::ofstream(lines).close();
  expect(emox("train " + path_), 0, {"held-out loss after step 2", "held-out loss after step 4"});
  const std::string four = content();
  EXPECT_EQ(four.substr(0, two.size()), two);
  EXPECT_EQ(steps_in("eval.jsonl"), 2);
  // And the same after the last step, which is a multiple of eval.every_steps.
  std::ofstream(lines) << two;
  expect(emox("train " + path_), 0, {"nothing to do", "held-out loss after step 4"});
  EXPECT_EQ(content(), four);
  expect(emox("train " + path_), 0, {"nothing to do"});
  EXPECT_EQ(content(), four);
}

// One long held-out document: its evaluation takes seconds.
TEST_F(Stopping, AnEvaluationEndsAtOnceAndIsMadeUpFor) {
  const fs::path file = fs::path(recipe_.data.source[0].substr(recipe_.data.source[0].rfind(':') + 1)) / "heldout.npy";
  std::vector<std::uint16_t> text(1200000, 97);
  text.back() = 256;
  write_npy(file, std::span<const std::uint16_t>(text));
  const std::int64_t offsets[] = {0, static_cast<std::int64_t>(text.size())};
  write_npy(document_index_path(file), std::span<const std::int64_t>(offsets));
  recipe_.train.steps = 3, recipe_.eval.every_steps = 2, recipe_.eval.final = true;
  write();
  const std::string clock = "$(( $(date +%s%N) / 1000000 ))";
  const auto stopped = [&](int step) {
    CommandResult r = test::run_command(
        start() + "& job=$!; " + wait_for("metrics.jsonl", step) + "sleep 0.5; begin=" + clock +
        "; kill -TERM $job; wait $job; code=$?; echo ended after $(( " + clock + " - begin )) ms; exit $code");
    const auto at = r.output.rfind("ended after ");
    EXPECT_LT(std::stoi(r.output.substr(at + 12)), 2000) << r.output;
    return r;
  };
  expect(stopped(2), 0, {"stopped by SIGTERM after step 2; the same command evaluates step 2 and goes on from there"});
  EXPECT_TRUE(saved(2));
  EXPECT_EQ(steps_in("eval.jsonl"), 0);
  expect(emox("train " + path_ + " --run.stop_after_step=2"), 0, {"held-out loss after step 2"});
  expect(stopped(3), 0, {"stopped by SIGTERM after the last step; the same command makes its evaluation"});
  EXPECT_EQ(steps_in("eval.jsonl"), 1);
  expect(emox("train " + path_), 0, {"nothing to do", "held-out loss after step 3\n"});
  EXPECT_EQ(steps_in("eval.jsonl"), 2);
}

// No text is no loss: the source is named, and the mean is that of the others.
TEST_F(Stopping, ASourceWithoutHeldOutTokensHasNoLoss) {
  const fs::path file = fs::path(recipe_.data.source[1].substr(recipe_.data.source[1].rfind(':') + 1)) / "heldout.npy";
  const std::string label = recipe_.data.source[1].substr(0, recipe_.data.source[1].find(':'));
  const std::uint16_t text[] = {256, 256};
  const std::int64_t offsets[] = {0, 1, 2};
  write_npy(file, std::span<const std::uint16_t>(text));
  write_npy(document_index_path(file), std::span<const std::int64_t>(offsets));
  recipe_.train.steps = 2, recipe_.eval.final = true, recipe_.data.eval_documents = 2;
  write();
  expect(emox("train " + path_), 0,
         {label + " has no held-out tokens", "not in the mean, for want of held-out tokens: " + label});
  const auto json = json_of("eval " + recipe_.run.dir);
  EXPECT_TRUE(json.at("domains").at(label).at("loss").is_null()) << json;
  EXPECT_TRUE(json.at("domains").at(label).at("bits_per_byte").is_null()) << json;
  EXPECT_EQ(json.at("domains").at(label).at("tokens"), 0);
  double sum = 0;
  for (const auto& [name, domain] : json.at("domains").items())
    if (name != label) sum += domain.at("loss").get<double>();
  EXPECT_NEAR(json.at("mean").at("loss").get<double>(), sum / 3, 1e-9);
}

}  // namespace
}  // namespace emox
