// Stopping a job under mpirun: signals to the launcher, to one rank, and through launch/stoppable.sh; evaluations whose
// documents are of very different lengths.
#include <gtest/gtest.h>

#include <span>
#include <vector>

#include "data/format/npy.h"
#include "data/format/token_file.h"
#include "runtime/core/idx.h"
#include "runtime/files/files.h"
#include "tests/e2e/mpi_job.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using test::CommandResult;
using test::kEnvironment;

class StopMpi : public test::MpiJob {
 protected:
  StopMpi() {
    recipe_.train.steps = 1000000;
    test::write_recipe(path_, recipe_);
  }
  /// Starts `job` in the background as $job, waits for steps, does `then` and waits for its end.
  CommandResult after_steps(const std::string& job, const std::string& then) const {
    return test::run_command(
        kEnvironment + job + " & job=$!; until [[ $(wc -l < " + (run("run") / "metrics.jsonl").string() +
        ") -ge 3 ]]; do kill -0 $job || exit 99; sleep 0.05; done 2>/dev/null; " + then + "; wait $job; echo code $?.");
  }
  void expect_saved(const CommandResult& r, const std::string& signal, const std::string& code) const {
    EXPECT_NE(r.output.find("stopped by " + signal + " after step"), std::string::npos) << r.output;
    EXPECT_NE(r.output.find("code " + code + "."), std::string::npos) << r.output;
    const auto steps = test::read_metrics(run("run")).size();
    EXPECT_TRUE(fs::exists(run("run") / "checkpoints" / fmt::format("step-{:08}", steps) / "manifest.json")) << steps;
  }
};

// Open MPI 4.1 gives the ranks as long as it is told to, and calls the job a failed one.
TEST_F(StopMpi, TerminatingTheLauncherSavesWithinItsGrace) {
  const std::string job = start("run", 2);
  const std::string mpirun = EMOX_MPIEXEC;
  expect_saved(
      after_steps(mpirun + " --mca odls_base_sigkill_timeout 2" + job.substr(mpirun.size()), "kill -TERM $job"),
      "SIGTERM", "1");
}

TEST_F(StopMpi, TheScriptTurnsEverySignalIntoOneThatSaves) {
  expect_saved(after_steps(EMOX_SOURCE_DIR "/launch/stoppable.sh " + start("run", 2), "kill -TERM $job"), "SIGUSR1",
               "0");
}

TEST_F(StopMpi, ASignalToOneRankStopsAll) {
  const std::string pid = (directory_.path() / "pid").string();
  const std::string job = EMOX_MPIEXEC " -n 2 bash -c \"echo \\$\\$ > " + pid +
                          ".\\$OMPI_COMM_WORLD_RANK; exec " EMOX_BINARY " train " + path_ +
                          " --run.dir=" + run("run").string() + "\"";
  expect_saved(after_steps(job, "kill -HUP $(< " + pid + ".1)"), "SIGHUP", "0");
}

// Seconds of work in one document, and next to nothing in the other: slow is not stuck.
TEST_F(StopMpi, UnevenDocumentsAreNoHang) {
  const fs::path file = fs::path(recipe_.data.source[0].substr(recipe_.data.source[0].rfind(':') + 1)) / "heldout.npy";
  const std::vector<std::int64_t> offsets{0, 300000, 300051};
  std::vector<std::uint16_t> text(idx(offsets.back()), 97);
  text[299999] = text.back() = 256;
  write_npy(file, std::span<const std::uint16_t>(text));
  write_npy(document_index_path(file), std::span<const std::int64_t>(offsets));
  recipe_.data.source = {recipe_.data.source[0]};
  recipe_.train.steps = 2, recipe_.train.warmup_steps = 1, recipe_.eval.final = true;
  test::write_recipe(path_, recipe_);
  const fs::path done = train("run", 2, "--parallel.watchdog_s=1 --parallel.expert_parallel=1");
  const std::string line = try_read_text(done / "eval.jsonl").text;
  EXPECT_NE(line.find("\"tokens\": 300051"), std::string::npos) << line;
  const CommandResult again = test::run_command(std::string(kEnvironment) + EMOX_MPIEXEC " -n 2 " EMOX_BINARY " eval " +
                                                done.string() + " --parallel.watchdog_s=1 --json");
  EXPECT_EQ(again.exit_code, 0) << again.output;
}

}  // namespace
}  // namespace emox
