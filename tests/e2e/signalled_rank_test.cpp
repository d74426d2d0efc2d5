// A rank of `emox train` with sharded experts that is killed or stopped from outside, wherever in a step it is then.
#include <gtest/gtest.h>

#include <cstdio>
#include <regex>

#include "tests/e2e/mpi_job.h"

namespace emox {
namespace {

class SignalledRank : public test::MpiJob {
 protected:
  /// What the job printed after `signal` reached rank 1 in its third step or later; its exit code is never 0 then.
  std::string after(const std::string& signal, const std::string& overrides) {
    recipe_.train.steps = 1000000, recipe_.train.batch_sequences = recipe_.train.micro_batch_sequences = 64;
    recipe_.parallel.expert_parallel = 2;
    test::write_recipe(path_, recipe_);
    // Every rank leaves its pid in a file before it becomes emox.
    const std::string pids = (directory_.path() / "pid").string();
    const std::string job = EMOX_MPIEXEC " -n 2 bash -c \"echo \\$\\$ > " + pids +
                            ".\\$OMPI_COMM_WORLD_RANK; exec " EMOX_BINARY " train " + path_ +
                            " --run.dir=" + run("run").string() + " " + overrides + "\"";
    const test::CommandResult r = test::run_command(
        test::kEnvironment + job + " & job=$!; until [[ $(wc -l < " + (run("run") / "metrics.jsonl").string() +
        ") -ge 3 ]]; do kill -0 $job || exit 0; sleep 0.05; done; kill -" + signal + " $(< " + pids +
        ".1); begin=$(date +%s%N); wait $job; code=$?; echo ended after $(( ($(date +%s%N) - begin) / 1000000 )) ms; "
        "exit $code");
    EXPECT_NE(r.exit_code, 0) << r.output;
    std::smatch m;
    if (std::regex_search(r.output, m, std::regex("ended after ([0-9]+) ms"))) {
      EXPECT_LT(std::stoi(m[1]), 60000);
      std::printf("  %s: exit code %d, %s\n", signal.c_str(), r.exit_code, m[0].str().c_str());
    } else {
      ADD_FAILURE() << "the job did not end:\n" << r.output;
    }
    return r.output;
  }
};

void expect_match(const std::string& text, const std::string& pattern) {
  EXPECT_TRUE(std::regex_search(text, std::regex(pattern))) << "nothing matches " << pattern << " in:\n" << text;
}

TEST_F(SignalledRank, KilledIsNamedByTheLauncher) { expect_match(after("KILL", ""), "rank 1 .*exited on signal 9"); }

TEST_F(SignalledRank, StoppedIsNamedByTheWatchdogWithTheCollective) {
  const std::string output = after("STOP", "--parallel.watchdog_s=2");
  expect_match(output,
               "watchdog: (all_to_all_v|all_reduce|reduce_scatter|all_gather_v) #[0-9]+ on world.* has not finished");
  expect_match(output, "rank 1 does not answer");
}

}  // namespace
}  // namespace emox
