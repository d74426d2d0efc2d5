// The program on a device: what doctor, plan, train and bench say of it.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "launch/config/recipe.h"
#include "runtime/files/files.h"
#include "tests/cuda/program.h"
#include "tests/support/messages.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox {
namespace {

using nlohmann::json;
using test::expect_parts;

class DeviceProduct : public ::testing::Test {
 protected:
  DeviceProduct() : recipe_(test::tiny_recipe(test::make_text_sources(directory_.path()))) {
    recipe_.run.dir = (directory_.path() / "run").string();
    recipe_.model.sequence_length = 32;
    recipe_.train.batch_sequences = recipe_.train.micro_batch_sequences = 4;
    recipe_.train.steps = 3, recipe_.train.warmup_steps = 1;
    recipe_.eval.final = false;
    path_ = test::write_recipe(directory_.path() / "tiny.ini", recipe_).string();
  }
  test::CommandResult emox(const std::string& arguments, const std::string& environment = "") const {
    return test::run_command(environment + " OMP_NUM_THREADS=1 " + test::device_program() + " " + arguments);
  }
  json json_of(const std::string& arguments, const std::string& environment = "") const {
    const test::CommandResult r = emox(arguments + " --json", environment);
    EXPECT_EQ(r.exit_code, 0) << r.output;
    return json::parse(r.output.substr(r.output.rfind('\n', r.output.size() - 2) + 1));
  }
  std::string words(const std::string& arguments, int code, const std::string& environment = "") const {
    const test::CommandResult r = emox(arguments, environment);
    EXPECT_EQ(r.exit_code, code) << r.output;
    return r.output;
  }

  test::TemporaryDirectory directory_;
  Recipe recipe_;
  std::string path_;
};

TEST_F(DeviceProduct, DoctorShowsTheDeviceAndUsesIt) {
  const json report = json_of("doctor");
  ASSERT_FALSE(report.at("devices").empty());
  const json& device = report["devices"][0];
  EXPECT_TRUE(device.at("usable").get<bool>());
  EXPECT_FALSE(device.at("name").get<std::string>().empty());
  EXPECT_GT(device.at("memory").get<double>(), 0);
  EXPECT_LE(device.at("free").get<double>(), device["memory"].get<double>());
  EXPECT_EQ(report.at("runs_on").at("device"), "cuda");
  EXPECT_EQ(report["runs_on"].at("precision"), "bf16");
  EXPECT_EQ(report.at("gemm_type"), "bf16");
  EXPECT_GT(report.at("gemm_gflops_per_rank").get<double>(), 0);
  EXPECT_GT(report.at("copy_gb_s").get<double>(), 0);
  for (const char* key : {"driver", "runtime", "cublasLt"})
    EXPECT_TRUE(report.at("cuda_versions").contains(key)) << key;

  const std::string text = words("doctor " + path_ + " --train.precision=f32", 0);
  expect_parts(text, {"cuda                   built in, for sm_", "device 0 ", ": usable", "in f32 (run.device = auto)",
                      "the GPU has", "on the host,"});
  EXPECT_EQ(json_of("doctor " + path_ + " --run.device=cpu").at("runs_on").at("device"), "cpu");
}

// What a step takes is what was planned.
TEST_F(DeviceProduct, BenchGivesRatesAndThePlannedMemory) {
  const json r = json_of("bench ops " + path_ + " --steps=1");
  EXPECT_EQ(r.at("precision"), "bf16");
  EXPECT_GT(r.at("gradients_s").get<double>(), 0);
  EXPECT_GT(r.at("update_s").get<double>(), 0);
  EXPECT_NEAR(r["gradients_s"].get<double>() + r["update_s"].get<double>(), r.at("step_s").get<double>(),
              1e-6 * r["step_s"].get<double>());
  int products = 0, others = 0;
  for (const json& op : r.at("ops")) {
    EXPECT_GT(op.at("calls").get<int>(), 0) << op;
    const bool product = op.at("limit") == "gemm";
    const json& rate = op.at(product ? "gflop_per_s" : "gb_per_s");
    if (rate.is_null()) continue;
    EXPECT_GT(rate.get<double>(), 0) << op;
    ++(product ? products : others);
  }
  EXPECT_GE(products, 5);
  EXPECT_GE(others, 8);

  const json plan = json_of("plan " + path_ + " --run.device=cuda").at("most");
  const json& memory = r.at("device_memory");
  const double planned =
      plan.at("total").get<double>() - plan.at("libraries").get<double>() - plan.at("op_scratch").get<double>();
  EXPECT_NEAR(memory.at("tensors_peak").get<double>(), planned, 0.02 * planned);
  EXPECT_GT(memory.at("op_scratch").get<double>(), 0);
  EXPECT_LE(memory["op_scratch"].get<double>(), plan["op_scratch"].get<double>());
}

TEST_F(DeviceProduct, BenchPrintsATable) {
  expect_parts(words("bench ops " + path_ + " --steps=1 --train.precision=f32 --model.layers=1", 0),
               {"(f32): ratio", "forward and backward", "memory of the GPU, MiB: tensors", "limits: ", "GFLOP/s",
                "GB/s", "experts", "attention", "of limit"});
}

TEST_F(DeviceProduct, TrainProfilesSteps) {
  expect_parts(words("train " + path_ + " --profile-steps=2:4", 2), {"--profile-steps=2:4: the run has 3 steps"});
  EXPECT_FALSE(std::filesystem::exists(recipe_.run.dir));
  const std::string log = words("train " + path_ + " --profile-steps=2:3", 0);
  expect_parts(log, {"bf16 GEMM", "the profiler watches the steps 2 to 3", "step 3/3", "% of GEMM"});
  EXPECT_EQ(test::read_metrics(recipe_.run.dir).size(), 3U);
  const json jobs = json::parse(try_read_text(std::filesystem::path(recipe_.run.dir) / "run.json").text);
  EXPECT_EQ(jobs.at(0).at("precision"), "bf16");
  // Resumed, it makes no step that was done.
  expect_parts(words("train " + path_ + " --run.change=train.steps --train.steps=5 --profile-steps=2:4", 2),
               {"--profile-steps=2:4: this job makes the steps 4 to 5"});
}

TEST_F(DeviceProduct, OutOfMemorySaysWhatIsTooLarge) {
  // The weights have room there, the moments have not.
  const json plan = json_of("plan " + path_ + " --run.device=cuda").at("most");
  const auto bytes =
      plan.at("weights_and_gradients").get<std::int64_t>() + plan.at("optimizer").get<std::int64_t>() / 2;
  const std::string text = words("train " + path_, 1, "EMOX_EMULATOR_MEMORY=" + std::to_string(bytes));
  expect_parts(text, {"out of memory on CUDA device 0", "could not allocate", "are free", "What this run takes",
                      "weights and gradients", "optimizer (moments, f32 weights)", "activations", "all, before"});
  EXPECT_EQ(text.find("out of memory", text.find("out of memory") + 1), std::string::npos) << "said twice:\n" << text;
}

}  // namespace
}  // namespace emox
