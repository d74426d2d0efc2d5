// `emox select` and `emox subset` under mpirun: any number of ranks chooses the same experts and cuts the same model.
#include "model/modularity/expert_subset.h"
#include "tests/e2e/mpi_job.h"
#include "tests/support/checkpoints.h"

namespace emox::test {
namespace {

namespace fs = std::filesystem;

class SelectJob : public MpiJob {
 protected:
  static CommandResult emox(int ranks, const std::string& arguments) {
    return run_command(kEnvironment + std::string(EMOX_MPIEXEC " -n ") + std::to_string(ranks) + " " EMOX_BINARY " " +
                       arguments);
  }
  std::string label() const { return recipe_.data.source[0].substr(0, recipe_.data.source[0].find(':')); }
};

TEST_F(SelectJob, TheSameChoiceAndTheSameModelOnAnyRanks) {
  const std::string run = train("run", 2, "--run.stop_after_step=8 --parallel.expert_parallel=2").string();
  for (const std::string method : {"layerwise", "global", "easy-ep"}) {
    SCOPED_TRACE(method);
    std::vector<ExpertSubset> subsets;
    for (const int ranks : {1, 2, 4}) {
      const std::string file = (directory_.path() / (method + std::to_string(ranks) + ".json")).string();
      const CommandResult r =
          emox(ranks, "select " + run + " --parallel.expert_parallel=" + std::to_string(ranks) +
                          " --domain=" + label() + " --keep=4 --examples=5 --method=" + method + " --output=" + file);
      ASSERT_EQ(r.exit_code, 0) << r.output;
      subsets.push_back(ExpertSubset::from_file(file));
      EXPECT_GT(subsets[0].provenance.at("smallest_gap"), 1e-5);
      EXPECT_EQ(subsets.back().routed, subsets[0].routed) << ranks << " ranks";
      EXPECT_EQ(subsets.back().provenance.at("tokens"), subsets[0].provenance.at("tokens"));
    }
  }
  fs::path first;
  for (const int ranks : {1, 4}) {
    const fs::path output = directory_.path() / ("small" + std::to_string(ranks));
    const CommandResult r =
        emox(ranks, "subset " + run + " --experts=" + (directory_.path() / "global1.json").string() +
                        " --output=" + output.string());
    ASSERT_EQ(r.exit_code, 0) << r.output;
    const fs::path step = output / "checkpoints" / "step-00000008";
    if (first.empty())
      first = step;
    else
      EXPECT_TRUE(same_arrays(first, step));
  }
  const CommandResult e = emox(2, "eval " + run + " --data.eval_documents=2 --keep=3 --examples=2 --json");
  EXPECT_EQ(e.exit_code, 0) << e.output;
  EXPECT_NE(e.output.find("\"experts_kept\":3"), std::string::npos) << e.output;
}

}  // namespace
}  // namespace emox::test
