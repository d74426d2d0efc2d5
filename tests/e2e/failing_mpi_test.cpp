// What all ranks find wrong is said once, and the job ends without MPI_Abort.
#include <nlohmann/json.hpp>

#include "launch/run/run_status.h"
#include "tests/e2e/mpi_job.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using test::CommandResult;
using test::kEnvironment;

class FailingMpi : public test::MpiJob {
 protected:
  static std::size_t count(const std::string& text, const std::string& part) {
    std::size_t n = 0;
    for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
    return n;
  }
  CommandResult fails(int ranks, const std::string& overrides) const {
    return test::run_command(kEnvironment + start("run", ranks, overrides));
  }
};

TEST_F(FailingMpi, WhatAllRanksFindIsSaidOnce) {
  const struct {
    const char *overrides, *said;
  } cases[] = {{"--parallel.expert_parallel=3", "parallel.expert_parallel = 3"},
               {"--run.change=train.steps", "holds no checkpoint"},
               {"--train.stepz=3", "train.steps"},
               {"--data.source=a:1:/dev/null/none", "does not exist"}};
  for (const auto& c : cases) {
    const CommandResult r = fails(4, c.overrides);
    EXPECT_EQ(r.exit_code, 2) << r.output;
    EXPECT_EQ(count(r.output, c.said), 1U) << r.output;
    EXPECT_EQ(count(r.output, "MPI_ABORT"), 0U) << r.output;
    EXPECT_FALSE(fs::exists(run("run"))) << c.overrides;
  }
}

// A lease that another job has: tried again by scripts.
TEST_F(FailingMpi, TryingAgainIsAgreedToo) {
  const std::string program = EMOX_BINARY " train " + path_ + " --train.steps=1000000 --run.dir=" + run("run").string();
  const CommandResult r = test::run_command(
      kEnvironment + program + " & job=$!; until [[ $(wc -l <" + (run("run") / "metrics.jsonl").string() +
      ") -ge 2 ]]; do sleep 0.05; done 2>/dev/null; " + start("run", 2) + "; echo code $?; kill -9 $job");
  EXPECT_NE(r.output.find("code 75"), std::string::npos) << r.output;
  EXPECT_EQ(count(r.output, "is in use"), 1U) << r.output;
  EXPECT_EQ(count(r.output, "MPI_ABORT"), 0U) << r.output;
}

TEST_F(FailingMpi, ARunThatFailsOnAllRanksSaysSoInItsStatus) {
  train("run", 2, "--run.stop_after_step=2");
  fs::remove(run("run") / "metrics.jsonl");
  fs::create_directory(run("run") / "metrics.jsonl");
  const CommandResult r = fails(2, "");
  EXPECT_EQ(r.exit_code, 1) << r.output;
  const auto status = RunStatus::read(run("run"));
  ASSERT_TRUE(status);
  EXPECT_EQ(status->state, RunState::Failed);
  EXPECT_NE(status->reason.find("metrics.jsonl"), std::string::npos) << status->reason;
}

}  // namespace
}  // namespace emox
