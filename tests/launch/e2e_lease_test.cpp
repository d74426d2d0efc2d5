// Two `emox train` on one run directory: the second says who has it, and starts as soon as the first is gone.
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "launch/run/lease_holder.h"
#include "launch/run/trainer.h"
#include "parallel/comm/factory.h"
#include "runtime/core/error.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using test::CommandResult;

class ProgramLease : public testing::Test {
 protected:
  ProgramLease() : recipe_(test::tiny_recipe(test::make_text_sources(directory_.path()))) {
    recipe_.eval.final = false;
    recipe_.train.steps = 1000000;
    recipe_.run.dir = run_.string();
    path_ = test::write_recipe(directory_.path() / "tiny.ini", recipe_).string();
  }
  std::string command(const std::string& overrides = "") const {
    return "OMP_NUM_THREADS=1 " EMOX_BINARY " train " + path_ + " " + overrides;
  }
  std::string wait_for_steps() const {
    return "until [[ $(wc -l < " + (run_ / "metrics.jsonl").string() + ") -ge 3 ]]; do sleep 0.05; done 2> /dev/null; ";
  }

  test::TemporaryDirectory directory_;
  const fs::path run_ = directory_.path() / "run";
  Recipe recipe_;
  std::string path_;
};

void expect_parts(const CommandResult& r, const std::vector<std::string>& parts) {
  for (const std::string& part : parts)
    EXPECT_NE(r.output.find(part), std::string::npos) << "no '" << part << "' in:\n" << r.output;
}

TEST_F(ProgramLease, TheSecondIsRefusedAndStartsWhenTheFirstIsKilled) {
  const std::string second = command("--run.stop_after_step=2");
  const CommandResult r =
      test::run_command(command() + " & job=$!; " + wait_for_steps() + "cp -r " + run_.string() + "/recipe.ini " +
                        run_.string() + "/run.json " + directory_.path().string() + "; " + second +
                        "; echo code $? for $job; cmp " + run_.string() + "/run.json " + directory_.path().string() +
                        "/run.json && echo untouched; kill -9 $job; " + second + "; echo code $?; ls " + run_.string());
  std::string pid = r.output.substr(r.output.find("code 75 for ") + 12);
  pid = pid.substr(0, pid.find('\n'));
  expect_parts(r,
               {"emox: the run directory " + run_.string() + " is in use: process " + pid + " on ",
                "`emox train " + path_ + "`", "since 20", "last renewed 20", "Wait until it ends", "kill -USR1 " + pid,
                "--run.dir=DIR", "code 75 for ", "untouched", "stopped after step 2 (run.stop_after_step)", "code 0"});
  EXPECT_EQ(test::read_metrics(run_).size(), 2U);
  EXPECT_FALSE(fs::exists(run_ / "lease.json")) << "given back at the end";
}

TEST_F(ProgramLease, GivenBackAfterAnError) {
  // The learning rate is so high that the loss is not finite soon.
  recipe_.train.warmup_steps = 0, recipe_.train.clip_norm = 0, recipe_.train.schedule = ScheduleKind::Constant;
  recipe_.train.learning_rate = 10, recipe_.train.weight_decay = 10;
  test::write_recipe(path_, recipe_);
  const CommandResult r = test::run_command(command());
  EXPECT_EQ(r.exit_code, 1);
  expect_parts(r, {"Nothing was updated"});
  EXPECT_FALSE(fs::exists(run_ / "lease.json"));
}

// As when this host was suspended for more than a minute, and another job has taken the directory.
TEST_F(ProgramLease, ATrainingThatLostItsDirectoryWritesNothingMore) {
  std::string message;
  std::thread job([&] {
    Session session(make_communicator(Transport::Self, 60), 1);
    try {
      train(session, recipe_, {"emox", "train", "first.ini"}, {"", "", {10ms, 1h}});
    } catch (const Error& e) {
      message = e.message();
    }
  });
  const auto lines = [&] {
    std::ifstream in(run_ / "metrics.jsonl");
    return std::count(std::istreambuf_iterator<char>(in), {}, '\n');
  };
  const auto end = std::chrono::steady_clock::now() + 60s;
  while (lines() < 3 && std::chrono::steady_clock::now() < end) std::this_thread::sleep_for(5ms);
  LeaseHolder thief = LeaseHolder::self({"emox", "train", "second.ini"});
  thief.host = "node7";
  std::ofstream(run_ / "other") << thief.to_text();
  fs::rename(run_ / "other", run_ / "lease.json");
  job.join();
  for (const char* part : {"lost the run directory", "node7", "emox train second.ini", "It stops now"})
    EXPECT_NE(message.find(part), std::string::npos) << "no '" << part << "' in: " << message;
  EXPECT_FALSE(fs::exists(run_ / "checkpoints" / "step-00000001"));
  EXPECT_TRUE(fs::is_empty(run_ / "checkpoints"));
  EXPECT_EQ(LeaseFile::read(run_ / "lease.json")->holder->token, thief.token) << "left alone at the end";
}

}  // namespace
}  // namespace emox
