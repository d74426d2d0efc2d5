// `mpirun emox study`: ranks share every cell, and a second job is kept out.
#include <gtest/gtest.h>

#include "launch/analysis/report/retention.h"
#include "runtime/files/files.h"
#include "tests/e2e/mpi_job.h"

namespace emox {
namespace {

class StudyMpi : public test::MpiJob {
 protected:
  StudyMpi() {
    recipe_.train.steps = 4, recipe_.train.warmup_steps = 1, recipe_.data.eval_documents = 4;
    test::write_recipe(path_, recipe_);
  }
  std::string study(const std::string& name, int ranks, const std::string& overrides = "") const {
    return EMOX_MPIEXEC " -n " + std::to_string(ranks) + " " EMOX_BINARY " study " + path_ +
           " --seeds 1 --chance-draws 2 --run.dir=" + run(name).string() + " " + overrides;
  }
  std::vector<RetentionRow> rows(const std::string& name) const {
    return read_retention(try_read_text(run(name) / "retention.csv").text, name);
  }
};

TEST_F(StudyMpi, FindsTheSameOnAnyNumberOfRanksAlsoAcrossAStop) {
  const auto job = [&](const std::string& command) {
    const test::CommandResult r = test::run_command(test::kEnvironment + command);
    EXPECT_EQ(r.exit_code, 0) << r.output;
    return r.output;
  };
  // The last two have no experts, or too few, to share out.
  const std::string cells = "--cells emo,standard,dense,quarter-experts ";
  job(study("one", 1, cells));
  EXPECT_NE(
      job(study("two", 2, cells + "--parallel.expert_parallel=2 --run.stop_after_step=2")).find("is not complete"),
      std::string::npos);
  job(study("two", 2, cells + "--parallel.expert_parallel=2"));
  const auto one = rows("one"), two = rows("two");
  ASSERT_EQ(one.size(), 64U);
  ASSERT_EQ(two.size(), one.size());
  for (std::size_t i = 0; i < one.size(); ++i) {
    EXPECT_EQ(two[i].model + two[i].domain + two[i].selection, one[i].model + one[i].domain + one[i].selection);
    EXPECT_EQ(two[i].experts_kept, one[i].experts_kept);
    EXPECT_NEAR(two[i].loss, one[i].loss, 1e-5 * one[i].loss);
  }
}

TEST_F(StudyMpi, ASecondJobIsToldThatTheStudyIsInUse) {
  const std::string first = study("busy", 1, "--train.steps=1000000");
  const test::CommandResult r = test::run_command(
      test::kEnvironment + first + " & job=$!; until [[ -e " +
      (run("busy") / "cells/emo-seed3/metrics.jsonl").string() + " ]]; do kill -0 $job || exit 9; sleep 0.05; done; " +
      study("busy", 2) + "; echo \"code $?.\"; kill -USR1 $job; " + "wait $job; echo \"first: code $?.\"");
  EXPECT_EQ(r.exit_code, 0) << r.output;
  EXPECT_NE(r.output.find("the run directory " + run("busy").string() + " is in use"), std::string::npos) << r.output;
  EXPECT_NE(r.output.find("code 75."), std::string::npos) << r.output;
  EXPECT_NE(r.output.find("the study is not complete"), std::string::npos) << r.output;
  EXPECT_NE(r.output.find("first: code 0."), std::string::npos) << r.output;
  EXPECT_FALSE(std::filesystem::exists(run("busy") / "lease.json"));
}

}  // namespace
}  // namespace emox
