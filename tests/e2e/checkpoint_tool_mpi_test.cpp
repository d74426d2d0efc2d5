// `emox checkpoint` under mpirun: the ranks share the reading, rank 0 speaks, the exit code is the job's.
#include <fstream>

#include "tests/e2e/mpi_job.h"

namespace emox::test {
namespace {

namespace fs = std::filesystem;

class CheckpointToolJob : public MpiJob {
 protected:
  static CommandResult tool(int ranks, const std::string& arguments) {
    return run_command(kEnvironment + std::string(EMOX_MPIEXEC " -n ") + std::to_string(ranks) +
                       " " EMOX_BINARY " checkpoint " + arguments);
  }
  static void expect(const CommandResult& result, int code, const std::vector<std::string>& parts) {
    EXPECT_EQ(result.exit_code, code) << result.output;
    for (const std::string& part : parts) {
      const std::size_t at = result.output.find(part);
      EXPECT_NE(at, std::string::npos) << "no '" << part << "' in:\n" << result.output;
      EXPECT_EQ(result.output.find(part, at + 1), std::string::npos) << part << " twice in:\n" << result.output;
    }
  }
};

TEST_F(CheckpointToolJob, SharesTheWork) {
  const std::string keys = "--run.stop_after_step=2 --parallel.expert_parallel=2";
  const fs::path a = train("a", 2, keys), b = train("b", 2, keys);
  const fs::path step = a / "checkpoints" / "step-00000002", shard = step / "shard-00001-of-00002.h5";
  expect(tool(2, "verify " + a.string()), 0, {"step-00000002: intact: "});
  expect(tool(3, "info " + a.string()), 0, {"step 2, ", "recent gradients"});
  expect(tool(2, "diff " + a.string() + " " + b.string()), 0, {"tensors are equal", "run.dir: "});
  const std::string output = (directory_.path() / "out.h5").string();
  expect(tool(2, "export " + a.string() + " --output=" + output), 0, {"read 2 of its 3 files"});
  EXPECT_TRUE(fs::exists(output));
  expect(tool(2, "export " + a.string() + " --output=" + output), 2, {"--force"});
  expect(tool(2, "diff " + a.string() + " " + train("c", 2, keys + " --train.learning_rate=1e-4").string()), 1,
         {"train.learning_rate: ", " differ\n"});
  fs::resize_file(shard, fs::file_size(shard) / 2);
  expect(tool(2, "verify " + a.string()), 1, {"DAMAGED", "shard-00001-of-00002.h5 is damaged: "});
  expect(tool(2, "info " + step.string()), 1, {"shard-00001-of-00002.h5 is damaged: "});
}

}  // namespace
}  // namespace emox::test
