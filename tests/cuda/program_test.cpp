// The program itself on a device: a run that changes between CPU and GPU, evaluation, selection, subsets. The device is
// the emulated one.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "runtime/files/files.h"
#include "tests/cuda/program.h"
#include "tests/support/checkpoints.h"
#include "tests/support/device.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox::test {
namespace {

namespace fs = std::filesystem;

class CudaProgram : public ::testing::Test {
 protected:
  CudaProgram() {
    Recipe r = tiny_recipe(make_text_sources(directory_.path()));
    r.train.batch_sequences = r.train.micro_batch_sequences = 3;
    r.train.steps = 6;
    r.checkpoint.every_steps = 3;
    r.eval.final = false;
    recipe_ = write_recipe(directory_.path() / "tiny.ini", r);
  }

  // emox ARGUMENTS, from the directory of the runs; what it printed.
  std::string emox(const std::string& arguments, int code = 0) {
    const CommandResult r =
        run_command("cd " + directory_.path().string() + " && " + device_program() + " " + arguments, 100);
    EXPECT_EQ(r.exit_code, code) << arguments << "\n" << r.output;
    return r.output;
  }
  std::string train(const std::string& run, const std::string& device, const std::string& more = "") {
    return emox("train " + recipe_.string() + " --run.dir=" + run + " --run.device=" + device + " " + more);
  }
  fs::path run(const std::string& name) const { return directory_.path() / name; }
  std::vector<double> losses(const std::string& name) const {
    std::vector<double> all;
    for (const auto& line : read_metrics(run(name))) all.push_back(line.at("loss"));
    return all;
  }
  // Held-out losses by domain. What a slow evaluation says of its progress goes elsewhere.
  nlohmann::json evaluation(const std::string& name, const std::string& device, const std::string& more = "") {
    return nlohmann::json::parse(emox("eval " + name + " --json --run.device=" + device + " " + more + " 2>eval.log"))
        .at("domains");
  }

  TemporaryDirectory directory_;
  fs::path recipe_;
};

void expect_near(const std::vector<double>& got, const std::vector<double>& want, double tolerance) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], tolerance * want[i]) << i;
}

void expect_near(const nlohmann::json& got, const nlohmann::json& want, double tolerance) {
  ASSERT_EQ(got.size(), want.size());
  for (const auto& [name, domain] : want.items())
    EXPECT_NEAR(got.at(name).at("loss").get<double>(), domain.at("loss").get<double>(),
                tolerance * domain.at("loss").get<double>())
        << name;
}

// Half of a run on one, half on the other: files are the same, and so are the losses.
TEST_F(CudaProgram, ARunChangesBetweenCpuAndGpu) {
  train("cpu", "cpu");
  const std::string precision = "--train.precision=f32 ";
  train("gpu", "cuda", precision);
  train("there", "cpu", "--run.stop_after_step=3");
  // With auto on both sides nothing of the recipe changes; f32 here, so that the losses can be compared closely.
  const std::string text = train("there", "cuda", precision + "--run.change=train.precision");
  EXPECT_NE(text.find("resumed"), std::string::npos) << text;
  train("back", "cuda", precision + "--run.stop_after_step=3");
  train("back", "cpu", precision);
  const auto want = losses("cpu");
  ASSERT_EQ(want.size(), 6U);
  for (const char* name : {"gpu", "there", "back"}) expect_near(losses(name), want, 1e-5);
}

TEST_F(CudaProgram, InBf16ARunGoesOnWhereItStopped) {
  train("whole", "auto");
  train("halves", "auto", "--run.stop_after_step=3");
  train("halves", "auto");
  EXPECT_EQ(losses("halves"), losses("whole"));
  EXPECT_TRUE(same_arrays(run("whole") / "checkpoints/step-00000006", run("halves") / "checkpoints/step-00000006"));
  const auto about = nlohmann::json::parse(emox("checkpoint verify whole --json 2>verify.log"));
  EXPECT_FALSE(about.empty());
}

TEST_F(CudaProgram, EvaluationSelectionAndSubsetsAreTheCpus) {
  train("run", "cpu");
  const auto cpu = evaluation("run", "cpu");
  expect_near(evaluation("run", "cuda", "--train.precision=f32"), cpu, 1e-5);
  expect_near(evaluation("run", "cuda"), cpu, 5e-3);
  const auto select = [&](const std::string& device, const std::string& output) {
    emox("select run --domain gnu --keep 5 --output " + output + " --run.device=" + device);
    return nlohmann::json::parse(read_text(directory_.path() / output));
  };
  const auto here = select("cpu", "cpu.json"), there = select("cuda --train.precision=f32", "gpu.json");
  EXPECT_EQ(there.at("kept"), here.at("kept"));
  expect_near(evaluation("run", "cuda", "--train.precision=f32 --experts gpu.json"),
              evaluation("run", "cpu", "--experts cpu.json"), 1e-5);
  emox("subset run --experts gpu.json --output small --run.device=cuda");
  expect_near(evaluation("small", "cuda", "--train.precision=f32"), evaluation("run", "cpu", "--experts cpu.json"),
              1e-5);
}

TEST_F(CudaProgram, SaysWhyThereIsNoGpu) {
  const CommandResult none =
      run_command("EMOX_EMULATOR_DEVICES=0 CUDA_VISIBLE_DEVICES= " + device_program() + " train " + recipe_.string() +
                      " --run.device=cuda --run.dir=" + run("none").string(),
                  60);
  EXPECT_EQ(none.exit_code, 2);
  EXPECT_NE(none.output.find("run.device = cuda"), std::string::npos) << none.output;
  EXPECT_FALSE(fs::exists(run("none")));
  const std::string text =
      run_command("EMOX_EMULATOR_DEVICES=0 CUDA_VISIBLE_DEVICES= " + device_program() + " doctor --json", 60).output;
  EXPECT_NE(text.find("cuda"), std::string::npos) << text;
}

}  // namespace
}  // namespace emox::test
