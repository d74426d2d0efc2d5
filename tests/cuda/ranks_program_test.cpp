// The program under mpirun, each rank with a device, rows and gradients staged through host memory: a run that changes
// between meshes and between devices and the CPU, and what doctor says of it.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/cuda/program.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox::test {
namespace {

namespace fs = std::filesystem;

class CudaRanksProgram : public ::testing::Test {
 protected:
  CudaRanksProgram() {
    Recipe r = tiny_recipe(make_text_sources(directory_.path()));
    r.train.batch_sequences = r.train.micro_batch_sequences = 4;
    r.train.steps = 6;
    r.checkpoint.every_steps = 3;
    r.eval.final = false;
    recipe_ = write_recipe(directory_.path() / "tiny.ini", r);
  }
  std::string emox(int ranks, const std::string& arguments, int code = 0) {
    const char* mpirun = std::getenv("EMOX_MPIRUN");
    const CommandResult r =
        run_command("cd " + directory_.path().string() +
                        " && EMOX_EMULATOR_DEVICES=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 " +
                        std::string(mpirun == nullptr ? "mpirun" : mpirun) + " --oversubscribe --bind-to none -n " +
                        std::to_string(ranks) + " " + device_program() + " " + arguments,
                    100);
    EXPECT_EQ(r.exit_code, code) << arguments << "\n" << r.output;
    return r.output;
  }
  std::string train(const std::string& run, int ranks, const std::string& device, const std::string& more) {
    return emox(ranks, "train " + recipe_.string() + " --run.dir=" + run + " --train.threads=1 --run.device=" + device +
                           " --train.precision=f32 " + (device == "cuda" ? "--parallel.communicator=staged " : "") +
                           more);
  }
  std::vector<double> losses(const std::string& run) const {
    std::vector<double> all;
    for (const auto& line : read_metrics(directory_.path() / run)) all.push_back(line.at("loss"));
    return all;
  }
  TemporaryDirectory directory_;
  fs::path recipe_;
};

// Experts on two devices, then a copy of them on each, then the CPU: the losses are those of one run on the CPU.
TEST_F(CudaRanksProgram, ARunChangesMeshesAndDevices) {
  train("cpu", 2, "cpu", "--parallel.expert_parallel=2");
  const std::string text = train("there", 2, "cuda", "--parallel.expert_parallel=2 --run.stop_after_step=2");
  EXPECT_NE(text.find("rank 0 on GPU 0"), std::string::npos) << text;
  EXPECT_NE(text.find("(staged)"), std::string::npos) << text;
  train("there", 2, "cuda", "--parallel.expert_parallel=1 --run.stop_after_step=4");
  const std::string last = train("there", 1, "cpu", "--parallel.expert_parallel=1");
  EXPECT_NE(last.find("resumed"), std::string::npos) << last;
  const std::vector<double> want = losses("cpu"), got = losses("there");
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-5 * want[i]) << i;
}

TEST_F(CudaRanksProgram, RanksThatShareADeviceAreToldSo) {
  const std::string text = emox(2, "train " + recipe_.string() + " --run.dir=shared --run.device=cuda", 2);
  EXPECT_NE(text.find("ranks 0 and 1 have the same GPU"), std::string::npos) << text;
  EXPECT_NE(text.find("parallel.communicator = staged"), std::string::npos) << text;
  EXPECT_FALSE(fs::exists(directory_.path() / "shared"));
}

TEST_F(CudaRanksProgram, DoctorMeasuresTheLinks) {
  const auto report = nlohmann::json::parse(
      emox(2, "doctor " + recipe_.string() + " --json --run.device=cuda --parallel.communicator=staged 2>doctor.log"));
  EXPECT_EQ(report.at("transport"), "staged");
  EXPECT_EQ(report.at("links").at("same_node").at("peers"), 1);
  EXPECT_GT(report["links"]["same_node"].at("gb_s"), 0.0);
  EXPECT_FALSE(report["links"].contains("other_nodes"));
  EXPECT_EQ(report.at("binding").size(), 1U);
}

// The same rows and bytes on devices as on the CPU.
TEST_F(CudaRanksProgram, BenchDispatchRunsThere) {
  const auto bench = [&](const std::string& where) {
    return nlohmann::json::parse(emox(2, "bench dispatch " + recipe_.string() +
                                             " --json --repeats=2 --train.threads=1 --train.precision=f32 "
                                             "--parallel.expert_parallel=2 " +
                                             where + " 2>bench.log"));
  };
  const auto device = bench("--run.device=cuda --parallel.communicator=staged"), cpu = bench("--run.device=cpu");
  EXPECT_EQ(device.at("transport"), "staged");
  EXPECT_EQ(device.at("rows_sent_per_token"), cpu.at("rows_sent_per_token"));
  EXPECT_EQ(device.at("bytes"), cpu.at("bytes"));
  EXPECT_GT(device.at("link_ratio"), 0.0);
}

}  // namespace
}  // namespace emox::test
