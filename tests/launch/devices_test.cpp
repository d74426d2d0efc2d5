// Where a run computes: what the choice says, what doctor reports, what a plan for GPUs counts without one.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "launch/plan/memory.h"
#include "launch/plan/state_plan.h"
#include "launch/run/device_choice.h"
#include "launch/run/device_report.h"
#include "launch/run/profile_steps.h"
#include "tests/launch/tiny_program.h"
#include "tests/support/messages.h"

namespace emox {
namespace {

using nlohmann::json;
using test::expect_parts, test::usage_error;

class FakeAccelerator final : public Accelerator {
 public:
  std::string why;
  int count() const override { return why.empty() ? 2 : 0; }
  std::string trouble() const override { return why; }
  DeviceProperties properties(int device) const override {
    return {device == 0 ? "New" : "Old",
            device == 0 ? 9 : 7,
            0,
            132,
            std::size_t{140} << 30,
            std::size_t{139} << 30,
            "0000:0" + std::to_string(device) + ":00.0",
            device == 0};
  }
  std::vector<std::string> compiled_for() const override { return {"sm_80", "sm_90a"}; }
  std::vector<std::pair<std::string, std::string>> versions() const override {
    return {{"driver", "CUDA 13.1"}, {"runtime", "CUDA 13.0"}};
  }
  std::string unusable(int device) const override { return device == 0 ? "" : "it is too old"; }
  void* allocate(int, std::size_t) override { return nullptr; }
  void release(int, void*) noexcept override {}
  void* allocate_pinned(std::size_t) override { return nullptr; }
  void release_pinned(void*) noexcept override {}
  std::unique_ptr<DeviceQueue> open_queue(int, bool) override { return nullptr; }
};

TEST(DeviceReport, SaysWhatIsThereAndWhyItCannotBeUsed) {
  const auto none = describe_devices(nullptr);
  EXPECT_EQ(none["cuda"], "built without CUDA");
  EXPECT_TRUE(none["devices"].empty());

  FakeAccelerator cuda;
  const auto two = describe_devices(&cuda);
  EXPECT_EQ(two["cuda"], "built in, for sm_80, sm_90a (driver CUDA 13.1, runtime CUDA 13.0)");
  EXPECT_EQ(two["cuda_compiled_for"].dump(), R"(["sm_80","sm_90a"])");
  EXPECT_EQ(two["cuda_versions"]["driver"], "CUDA 13.1");
  ASSERT_EQ(two["devices"].size(), 2U);
  EXPECT_EQ(two["devices"][0]["usable"], true);
  EXPECT_TRUE(two["devices"][0]["why_not"].is_null());
  EXPECT_EQ(two["devices"][1]["usable"], false);
  EXPECT_EQ(two["devices"][1]["why_not"], "it is too old");
  EXPECT_EQ(device_line(two["devices"][0]),
            "New, compute capability 9.0, 132 processors, 139.0 of 140.0 GiB free, PCI 0000:00:00.0, ECC on: usable");
  expect_parts(device_line(two["devices"][1]), {"Old, compute capability 7.0", "ECC off: it is too old"});

  cuda.why = "no NVIDIA driver is installed here";
  const auto no_driver = describe_devices(&cuda);
  expect_parts(no_driver["cuda"], {"built in, for sm_80", "; cannot be used: no NVIDIA driver is installed here"});
  EXPECT_TRUE(no_driver["devices"].empty());
}

// This program is linked without CUDA.
TEST(DeviceChoice, RefusesWhatTheCpuHasNot) {
  EXPECT_FALSE(choose_device(DeviceKind::Auto, Precision::Auto).on_gpu());
  EXPECT_EQ(choose_device(DeviceKind::Auto, Precision::Auto).activations, DType::F32);
  expect_parts(choose_device(DeviceKind::Auto, Precision::F32).why, {"run.device = auto: ", "without CUDA"});
  EXPECT_EQ(choose_device(DeviceKind::Cpu, Precision::F32).why, "run.device = cpu");
  expect_parts(usage_error([] { choose_device(DeviceKind::Cuda, Precision::Auto); }),
               {"run.device = cuda: ", "built without CUDA", "-DEMOX_CUDA=ON", "run.device = cpu"});
  expect_parts(usage_error([] { choose_device(DeviceKind::Cpu, Precision::Bf16); }),
               {"train.precision = bf16", "the CPU computes f32 only (run.device = cpu)", "use auto or f32"});
  expect_parts(usage_error([] { choose_device(DeviceKind::Auto, Precision::Bf16); }),
               {"train.precision = bf16", "(run.device = auto: ", "without CUDA"});
}

Recipe planned() {
  Recipe r = test::tiny_recipe({"a:1:b"});
  r.model.d_model = 64, r.model.layers = 3, r.model.expert_ff = 64, r.model.sequence_length = 128;
  r.model.num_experts = 26, r.model.top_k = 4, r.model.pool_min = 8, r.model.pool_max = 25;
  r.train.batch_sequences = 32, r.train.micro_batch_sequences = 32;
  r.run.device = DeviceKind::Cuda;
  return r;
}

TEST(DevicePlan, CountsAGpuWithoutOne) {
  Recipe r = planned();
  const DeviceChoice gpu = planned_device(r);
  EXPECT_TRUE(gpu.on_gpu());
  EXPECT_EQ(gpu.activations, DType::BF16);
  const RankMemory cpu = plan_rank_memory(r, 1, 8, 0, 1), bf16 = plan_rank_memory(r, 1, 8, 0, 1, gpu);
  r.train.precision = Precision::F32;
  const RankMemory f32 = plan_rank_memory(r, 1, 8, 0, 1, planned_device(r));

  // Layers x routed experts x three matrices of d_model x expert_ff.
  const std::int64_t expert_elements = 3 * 25 * 3 * 64 * 64;
  EXPECT_EQ(cpu.expert_weights, 4 * expert_elements);
  EXPECT_EQ(f32.expert_weights, 4 * expert_elements);
  EXPECT_EQ(bf16.expert_weights, 2 * expert_elements);
  // A weight and its gradient: 4 + 4 bytes, or 2 + 4; two moments, and in bf16 the f32 weights: 8, or 12.
  EXPECT_EQ(4 * bf16.weights_and_gradients, 3 * cpu.weights_and_gradients);
  EXPECT_EQ(2 * bf16.optimizer, 3 * cpu.optimizer);
  EXPECT_EQ(f32.weights_and_gradients, cpu.weights_and_gradients);
  EXPECT_EQ(f32.optimizer, cpu.optimizer);
  EXPECT_LT(bf16.activations, f32.activations);

  // All of it, and the few numbers of a step that no part names.
  for (const RankMemory* m : {&bf16, &f32}) {
    const std::int64_t parts = m->weights_and_gradients + m->optimizer + m->activations + m->libraries + m->op_scratch;
    EXPECT_GE(m->total, parts);
    EXPECT_LT(m->total, parts + (std::int64_t{1} << 20));
    EXPECT_EQ(m->libraries, kGpuLibraries);
    EXPECT_GE(m->op_scratch, std::int64_t{40} << 20);  // a product's 32 MiB, and a quarter
  }
  // What is saved: f32 weights and two moments, in host memory whether it is written at once or later.
  EXPECT_EQ(cpu.checkpoint, 0);
  EXPECT_EQ(bf16.checkpoint, f32.checkpoint);
  r.checkpoint.async = true;
  EXPECT_EQ(plan_rank_memory(r, 1, 8, 0, 1).checkpoint, bf16.checkpoint);
  EXPECT_EQ(plan_rank_memory(r, 1, 8, 0, 1, gpu).total, bf16.total);
}

TEST(DevicePlan, WeightsComeBackInTheirType) {
  const Recipe r = planned();
  const StatePlan f32 = plan_state(r, 2, 2), bf16 = plan_state(r, 2, 2, DType::BF16);
  EXPECT_GT(bf16.weights.bytes_intra_node, 0);
  EXPECT_EQ(2 * bf16.weights.bytes_intra_node, f32.weights.bytes_intra_node);
  EXPECT_EQ(bf16.gradients, f32.gradients);
  EXPECT_EQ(to_json(bf16)["checkpoint_bytes"], to_json(f32)["checkpoint_bytes"]);
}

TEST(DevicePlan, ScratchGrowsWithTheLargestOp) {
  const std::int64_t least = gpu_op_scratch(planned().model, 1, DType::BF16);
  // 16,384 tokens of the released model: queries and keys, turned, are 128 MiB, and a number a head and row 1 MiB.
  ModelConfig m;
  m.d_model = 2048, m.heads = 16, m.num_experts = 128, m.top_k = 8, m.vocab_size = 100352;
  const double mib = static_cast<double>(gpu_op_scratch(m, 16384, DType::BF16)) / 1048576;
  EXPECT_NEAR(mib, 1.25 * 129, 1);
  EXPECT_NEAR(static_cast<double>(least) / 1048576, 1.25 * 32, 0.1);
}

TEST(ProfileSteps, RangesAreReadAndMistakesNamed) {
  const StepRange r = parse_step_range("--profile-steps", "10:12"), one = parse_step_range("--profile-steps", "3");
  EXPECT_EQ(r.first, 10);
  EXPECT_EQ(r.last, 12);
  EXPECT_EQ(one.first, 3);
  EXPECT_EQ(one.last, 3);
  EXPECT_TRUE(StepRange{}.empty());
  for (const char* bad : {"", "0:3", "a:b", "1:", ":2", "1:2:3", "-1:2", "1.5:2"})
    expect_parts(usage_error([&] { parse_step_range("--profile-steps", bad); }),
                 {std::string("--profile-steps=") + bad, "FIRST:LAST", "10:12"});
  expect_parts(usage_error([] { parse_step_range("--profile-steps", "5:4"); }),
               {"the first step comes after the last", "--profile-steps=4:5"});
}

class DeviceCommands : public test::TinyProgram {
 protected:
  DeviceCommands() {
    recipe_.train.steps = 6;
    write();
  }
};

TEST_F(DeviceCommands, TrainRefusesAProfileWithoutAGpu) {
  expect(train("--run.device=cpu --profile-steps=2:3"), 2,
         {"--profile-steps=2:3: the profiler watches a GPU", "on the CPU (run.device = cpu)", "--trace=FILE"});
  expect(train("--profile-steps=2:7"), 2, {"--profile-steps=2:7: the run has 6 steps", "1 to 6"});
  expect(train("--profile-steps=x"), 2, {"--profile-steps=x is no range of steps"});
  expect(train("--run.device=cpu --train.precision=bf16"), 2, {"the CPU computes f32 only", "use auto or f32"});
  EXPECT_FALSE(std::filesystem::exists(run())) << "nothing was begun";
}

TEST_F(DeviceCommands, NamesOfOtherProgramsAreKnown) {
  expect(train("--run.device=gpu"), 2, {"run.device = gpu", "did you mean cuda?"});
  expect(train("--train.precision=bfloat16"), 2, {"train.precision = bfloat16", "did you mean bf16?"});
  expect(train("--train.precision=float32"), 2, {"did you mean f32?"});
  expect(train("--dtype=bf16"), 2, {"unknown option --dtype: did you mean --train.precision?"});
  expect(train("--gpu=0"), 2, {"did you mean --run.device?"});
  expect(train("--device=cuda"), 2, {"did you mean --run.device?"});
}

TEST_F(DeviceCommands, PlanIsForWhatTheRecipeNames) {
  const json gpu = json_of("plan " + path_ + " --ranks 2 --run.device=cuda"),
             f32 = json_of("plan " + path_ + " --ranks 2 --run.device=cuda --train.precision=f32"),
             cpu = json_of("plan " + path_ + " --ranks 2 --run.device=cpu");
  EXPECT_EQ(gpu.at("device"), "cuda");
  EXPECT_EQ(gpu.at("precision"), "bf16");
  EXPECT_EQ(f32.at("precision"), "f32");
  EXPECT_EQ(cpu.at("device"), "cpu");
  EXPECT_EQ(cpu.at("precision"), "f32");
  EXPECT_FALSE(cpu.at("most").contains("op_scratch"));
  EXPECT_EQ(gpu["most"]["host"].get<std::int64_t>(), gpu["most"]["checkpoint"].get<std::int64_t>() + (32 << 20));
  EXPECT_EQ(2 * gpu["state"]["weights"]["bytes_intra_node"].get<std::int64_t>(),
            f32["state"]["weights"]["bytes_intra_node"].get<std::int64_t>());
  expect(emox("plan " + path_ + " --ranks 2 --run.device=cuda"), 0,
         {"of a GPU each, in bf16", "CUDA, its libraries (a guess)", "scratch of the ops", "host: copy for saving"});
  expect(emox("plan " + path_ + " --run.device=cpu --train.precision=bf16"), 2, {"the CPU computes f32 only"});
}

TEST_F(DeviceCommands, DoctorSaysWhereARunComputes) {
  const json report = json_of("doctor " + path_ + " --run.device=cpu");
  EXPECT_TRUE(report.at("cuda").is_string());
  EXPECT_TRUE(report.at("devices").is_array());
  EXPECT_TRUE(report.at("cuda_compiled_for").is_array());
  EXPECT_EQ(report.at("runs_on").at("device"), "cpu");
  EXPECT_EQ(report["runs_on"].at("precision"), "f32");
  EXPECT_EQ(report["runs_on"].at("why"), "run.device = cpu");
  EXPECT_GT(report.at("gemm_gflops_per_rank").get<double>(), 0);
  EXPECT_EQ(report.at("gemm_type"), "f32");
  expect(emox("doctor " + path_ + " --run.device=cpu"), 0,
         {"a run uses", "in f32 (run.device = cpu)", "memory of the fullest rank"});
  if (!report["devices"].empty()) return;  // where there is one, it is used
  const json asked = json_of("doctor " + path_ + " --run.device=cuda");
  EXPECT_TRUE(asked.at("runs_on").at("device").is_null());
  expect_parts(asked["runs_on"].at("why"), {"run.device = cuda: "});
}

}  // namespace
}  // namespace emox
