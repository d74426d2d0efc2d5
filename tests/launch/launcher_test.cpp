// A launcher that started more processes than MPI joins, and what commands on ranks take from the command line.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "tests/launch/tiny_program.h"

namespace emox {
namespace {

using test::CommandResult;

class LauncherMismatch : public test::TinyProgram {
 protected:
  LauncherMismatch() {
    recipe_.train.steps = 2;
    write();
  }
  CommandResult train(const std::string& environment) const {
    return test::run_command(
        environment +
        " OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 " EMOX_BINARY " train " + path_);
  }
};

TEST_F(LauncherMismatch, IsRefusedBeforeAnythingIsTouched) {
  const struct {
    const char *environment, *said, *cure;
  } cases[] = {
      {"SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2", "srun started 2 ranks (SLURM_STEP_NUM_TASKS = 2)", "srun --mpi=pmix"},
      {"SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=4 PMI_RANK=0 PMI_SIZE=4", "srun started 4 ranks", "srun --mpi=pmix"},
      {"PMI_RANK=0 PMI_SIZE=3", "a PMI launcher started 3 ranks (PMI_SIZE = 3)", "srun --mpi=pmix"},
      {"OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=0", "mpirun started 2 ranks (OMPI_COMM_WORLD_SIZE = 2)",
       "with the mpirun of the MPI"},
  };
  for (const auto& c : cases) {
    const CommandResult r = train(c.environment);
    expect(r, 2, {c.said, "MPI sees 1 rank", c.cure});
    EXPECT_LE(std::count(r.output.begin(), r.output.end(), '\n'), 5) << r.output;
  }
  // One of them speaks for all.
  const CommandResult second = train("SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=2");
  EXPECT_EQ(second.exit_code, 2);
  EXPECT_EQ(second.output, "");
  EXPECT_FALSE(std::filesystem::exists(recipe_.run.dir));
}

// A job script has these, too, and starts one process.
TEST_F(LauncherMismatch, AJobScriptIsNoLauncher) {
  expect(train("SLURM_PROCID=0 SLURM_NTASKS=4 SLURM_JOB_ID=7 SLURM_NNODES=2"), 0, {"1 rank(s) (self)"});
}

// Before a run's recipe is read, ranks are joined: by the keys of the command line.
TEST_F(LauncherMismatch, KeysOfTheRanksCountInEveryCommand) {
  ASSERT_EQ(emox("train " + path_).exit_code, 0);
  const std::string run = recipe_.run.dir;
  for (const std::string& command :
       {"eval " + run, "select " + run + " --prompt=a --keep=4 --output=" + run + "/x.json", "checkpoint verify " + run,
        "checkpoint info " + run, "checkpoint diff " + run + " " + run, "checkpoint prune " + run + " --keep-last=1",
        "checkpoint export " + run + " --output=" + run + "/x.h5"}) {
    expect(emox(command + " --parallel.communicator=nccl"), 2,
           {"parallel.communicator = nccl moves data between GPUs", "auto or mpi"});
    expect(emox(command + " --parallel.watchdog_s=x"), 2, {"parallel.watchdog_s", "x"});
    expect(emox(command + " --parallel.watchdog_s=3 --train.threads=1"), 0, {});
  }
  expect(emox("checkpoint verify " + run + " --model.layers=3"), 2,
         {"emox checkpoint verify: --model.layers has no effect here", "--parallel.*"});
}

TEST_F(LauncherMismatch, TheDoctorSaysWhatASignalDoes) {
  expect(emox("doctor"), 0, {"to stop a run: SIGUSR1, SIGUSR2, SIGTERM, SIGINT or SIGHUP to the process"});
  const CommandResult r = test::run_command(
      "OMPI_COMM_WORLD_SIZE=1 OMPI_MCA_odls_base_sigkill_timeout=7 OMP_NUM_THREADS=1 " EMOX_BINARY " doctor --json");
  EXPECT_EQ(r.exit_code, 0) << r.output;
  const auto report = nlohmann::json::parse(r.output);
  EXPECT_EQ(report.at("mpirun_grace_s"), 7);
  EXPECT_NE(report.at("stopping").get<std::string>().find("a step and its save must fit into 7 s"), std::string::npos);
}

}  // namespace
}  // namespace emox
