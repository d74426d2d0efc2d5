// Two `mpirun emox train` on one run directory: all ranks of the second learn that it is in use.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "tests/e2e/mpi_job.h"

namespace emox {
namespace {

using LeaseMpi = test::MpiJob;

TEST_F(LeaseMpi, TheSecondIsRefusedAndStartsWhenTheFirstIsKilled) {
  recipe_.train.steps = 1000000;
  test::write_recipe(path_, recipe_);
  const std::string lease = (run("run") / "lease.json").string(), second = start("run", 2, "--run.stop_after_step=2");
  const test::CommandResult r = test::run_command(
      test::kEnvironment + start("run", 2) + " & job=$!; until [[ $(wc -l < " +
      (run("run") / "metrics.jsonl").string() + ") -ge 3 ]]; do kill -0 $job || exit 9; sleep 0.05; done; " +
      "pid=$(grep -o \"pid.: [0-9]*\" " + lease + " | grep -o [0-9]*); " + second +
      "; echo \"code $? process $pid.\"; kill -9 $pid; wait $job; " + second + "; echo \"second: code $?\"");
  EXPECT_EQ(r.exit_code, 0) << r.output;
  const auto at = r.output.find("code 75 process ");
  ASSERT_NE(at, std::string::npos) << r.output;
  const std::string pid = r.output.substr(at + 16, r.output.find('.', at) - at - 16);
  const std::string refusal = "emox: the run directory " + run("run").string() + " is in use: process " + pid + " on ";
  EXPECT_NE(r.output.find(refusal), std::string::npos) << r.output;
  EXPECT_NE(r.output.find("second: code 0"), std::string::npos) << r.output;
  EXPECT_EQ(test::read_metrics(run("run")).size(), 2U);
  EXPECT_FALSE(std::filesystem::exists(lease));
}

}  // namespace
}  // namespace emox
