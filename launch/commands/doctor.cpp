#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>

#include "launch/bench/link_bench.h"
#include "launch/commands/command.h"
#include "launch/config/arguments.h"
#include "launch/config/recipe_file.h"
#include "launch/plan/memory.h"
#include "launch/run/device_report.h"
#include "launch/run/failure.h"
#include "launch/run/gemm_rate.h"
#include "launch/run/on_ranks.h"
#include "launch/run/session.h"
#include "parallel/checkpoint/manifest.h"
#include "parallel/comm/mpi_launcher.h"
#include "parallel/comm/nccl/nccl_transport.h"
#include "runtime/core/accelerator.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/core/version.h"
#include "runtime/cpu/processor.h"
#include "runtime/ops/basic.h"
#include "runtime/telemetry/json_text.h"

namespace emox {
namespace {

// Seconds of one all-reduce of `bytes`, the best of several.
double all_reduce_seconds(Session& session, std::int64_t bytes) {
  const Tensor x(session.ctx().device, DType::F32, {bytes / 4});
  double best = 1e9;
  for (int i = 0; i < 6; ++i) {
    session.comm().barrier();
    const auto start = std::chrono::steady_clock::now();
    session.comm().all_reduce(x);
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

/// Bytes that programs could still take on this machine.
double available_memory() {
  std::ifstream in("/proc/meminfo");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("MemAvailable:")) return 1024 * std::stod(line.substr(line.find(':') + 1));
  return 0;
}

/// What the recipe takes on each of the ranks that are there, against what this node, or the GPU, has.
nlohmann::ordered_json memory_budget(Session& session, const Recipe& recipe) {
  const DeviceChoice& device = session.choice();
  const auto plan =
      plan_memory(recipe, session.comm().size(), session.comm().node_size(), session.ctx().threads, device);
  nlohmann::ordered_json budget = plan["most"];
  budget["device"] = plan["device"];
  const char* of_host = device.on_gpu() ? "host" : "total";
  budget["of_this_node"] = plan["most"][of_host].get<double>() * session.comm().node_size();
  budget["available"] = available_memory();
  if (device.on_gpu())  // what this process has taken of it, it will have again
    budget["gpu_available"] = cuda::accelerator()->properties(device.device.index).free + idx(kGpuLibraries);
  return budget;
}

void print_budget(const Recipe& recipe, const nlohmann::ordered_json& budget) {
  const bool gpu = budget["device"] == "cuda";
  const auto mib = [&](const char* key) { return budget[key].get<double>() / 1048576; };
  fmt::print(
      "\nmemory of the fullest rank for {}, MiB: weights and gradients {:.0f}, optimizer {:.0f}, activations {:.0f}, ",
      recipe.run.name, mib("weights_and_gradients"), mib("optimizer"), mib("activations"));
  if (gpu) {
    fmt::print("CUDA and its libraries about {:.0f}, scratch of the ops at most {:.0f}, all {:.0f}\n", mib("libraries"),
               mib("op_scratch"), mib("total"));
    fmt::print("the GPU has {:.0f} MiB for it; on the host, {:.0f} for saving and copies\n", mib("gpu_available"),
               mib("host"));
  } else {
    fmt::print("copy for saving {:.0f}{}, all {:.0f}\n", mib("checkpoint"),
               recipe.checkpoint.async ? "" : " (checkpoint.async = false)", mib("total"));
  }
  fmt::print("this node needs {:.0f} MiB at most and has {:.0f} available\n", mib("of_this_node"), mib("available"));
  if (gpu && mib("total") > mib("gpu_available"))
    fmt::print(
        "warning: it does not fit on the GPU: fewer model.layers or moe.num_experts, a smaller "
        "train.micro_batch_sequences, or run.device = cpu\n");
  if (mib("of_this_node") <= mib("available")) return;
  if (gpu)
    fmt::print("warning: the host has not enough for the copy of the state that saving takes\n");
  else
    fmt::print(
        "warning: it does not fit: more ranks on more nodes, a larger parallel.expert_parallel, a smaller "
        "train.micro_batch_sequences{}\n",
        recipe.checkpoint.async ? ", or checkpoint.async = false" : "");
}

/// Seconds between mpirun's getting a SIGTERM and the ranks' getting it; as long again until SIGKILL. Measured with
/// Open MPI 4.1, whose default is 1; the ranks see what was set by --mca or in the environment.
double mpirun_grace() {
  const char* text = std::getenv("OMPI_MCA_odls_base_sigkill_timeout");
  return text != nullptr && std::atof(text) > 0 ? std::atof(text) : 1;
}

/// What ends a training run here so that it saves.
std::string stopping(const Launcher& launcher) {
  if (launcher.name == "mpirun")
    return fmt::format(
        "send SIGUSR1 to mpirun: every rank ends its step and saves. SIGTERM, SIGINT or SIGHUP to mpirun reaches the\n"
        "ranks {0:g} s later, and SIGKILL {0:g} s after that: a step and its save must fit into {0:g} s. More time: "
        "mpirun --mca\nodls_base_sigkill_timeout N (a failing job then takes 2 N s to end), or launch/stoppable.sh in "
        "front of mpirun",
        mpirun_grace());
  if (launcher.name == "srun")
    return "scancel sends SIGTERM to the ranks, which end their step and save; SIGKILL follows after "
           "KillWait\n(scontrol "
           "show config). Before the time limit: emox slurm writes a job script that saves in time and goes on by "
           "itself";
  return "SIGUSR1, SIGUSR2, SIGTERM, SIGINT or SIGHUP to the process: the step ends and is saved. Under mpirun, ask "
         "again "
         "there:\nmpirun -n N emox doctor";
}

/// Where a run computes here. `refused`: why not where the recipe says.
nlohmann::ordered_json where_runs(Session& session, const std::string& refused) {
  if (!refused.empty()) return {{"device", nullptr}, {"name", nullptr}, {"precision", nullptr}, {"why", refused}};
  return {{"device", session.choice().on_gpu() ? "cuda" : "cpu"},
          {"name", device_name(session.ctx())},
          {"precision", name_of(session.ctx().activations)},
          {"why", session.choice().why}};
}

/// A line for each of the report's keys that people read in this form.
void print_report(const nlohmann::ordered_json& report) {
  const auto line = [](const std::string& key, const std::string& text) { fmt::print("{:<22} {}\n", key, text); };
  for (const auto& [key, value] : report.items()) {
    if (key == "devices") {
      for (const auto& device : value) line(fmt::format("device {}", device["index"].get<int>()), device_line(device));
    } else if (key == "runs_on") {
      line("a run uses", value["device"].is_null()
                             ? fmt::format("nothing: {}", value["why"].get<std::string>())
                             : fmt::format("{} in {} ({})", value["name"].get<std::string>(),
                                           value["precision"].get<std::string>(), value["why"].get<std::string>()));
    } else if (key == "links") {
      for (const auto& [peers, rate] : value.items())
        line(
            peers == "same_node" ? "links inside a node" : "links between nodes",
            fmt::format("{:.2f} GB/s a rank to {} peer(s) at once, {:.0f} us for a small exchange",
                        rate["gb_s"].get<double>(), rate["peers"].get<std::int64_t>(), rate["small_us"].get<double>()));
    } else if (key == "binding") {
      for (const auto& node : value) line("binding", node.get<std::string>());
    } else if (value.is_primitive()) {
      line(key, value.is_string()         ? value.get<std::string>()
                : value.is_number_float() ? fmt::format("{:.1f}", value.get<double>())
                                          : value.dump());
    }
  }
}

int diagnose(Session& session, bool json, const Recipe* recipe, const std::string& refused) {
  const double gemm = gemm_rate(session.ctx(), 5);
  const double small = all_reduce_seconds(session, 1024), large = all_reduce_seconds(session, 16 << 20);
  nlohmann::ordered_json report = {{"version", kVersion},
                                   {"processor", processor_name()},
                                   {"compiled_for", cpu::compiled_instructions()},
                                   {"cores", std::thread::hardware_concurrency()},
                                   {"ranks", session.comm().size()},
                                   {"ranks_on_this_node", session.comm().node_size()},
                                   {"transport", std::string(session.comm().transport())},
                                   {"threads_per_rank", session.ctx().threads}};
  report.update(describe_devices(cuda::accelerator()));
  report["runs_on"] = where_runs(session, refused);
  report["hdf5"] = hdf5_version();
  report["gemm_type"] = name_of(session.ctx().activations);
  report["gemm_gflops_per_rank"] = gemm / 1e9;
  if (session.choice().on_gpu()) report["copy_gb_s"] = copy_rate(session.ctx()) / 1e9;
  report["all_reduce_1_kib_us"] = small * 1e6;
  report["all_reduce_16_mib_ms"] = large * 1e3;
  const std::string nccl = nccl_version();
  report["nccl"] = nccl.empty() ? no_nccl() : nccl;
  if (session.comm().size() > 1) {
    report["links"] = link_rates(session);
    if (session.choice().on_gpu()) report["binding"] = binding_lines(session.comm(), session.choice());
  }
  const Launcher launcher = find_launcher();
  if (json) report["stopping"] = stopping(launcher);
  if (launcher.name == "mpirun") report["mpirun_grace_s"] = mpirun_grace();
  if (recipe != nullptr) recipe->validate(session.comm().size());
  if (!session.root()) return kDone;
  if (recipe != nullptr) report["memory"] = memory_budget(session, *recipe);
  if (json) {
    fmt::print("{}\n", json_text(report));
    return kDone;
  }
  print_report(report);
  fmt::print("\nto stop a run: {}\n", stopping(launcher));
  if (recipe != nullptr) print_budget(*recipe, report["memory"]);
  if (session.comm().size() == 1 && session.ctx().threads > 1)
    fmt::print("\none rank with {} threads; mpirun -n {} would give one rank a core (OMP_NUM_THREADS=1)\n",
               session.ctx().threads, session.ctx().threads);
  if (session.comm().node_size() * session.ctx().threads > static_cast<int>(std::thread::hardware_concurrency()))
    fmt::print("\nwarning: {} ranks x {} threads on {} cores: set OMP_NUM_THREADS={} or start fewer ranks\n",
               session.comm().node_size(), session.ctx().threads, std::thread::hardware_concurrency(),
               std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / session.comm().node_size()));
  return kDone;
}

}  // namespace

int run_doctor(const std::vector<std::string>& args) {
  const Arguments a = parse_args(args, {.command = "emox doctor",
                                        .flags = {"--json"},
                                        .overrides = true,
                                        .max_positional = 1,
                                        .positional = "[RECIPE.ini]"});
  require<UsageError>(!a.positional.empty() || a.overrides.empty(), "emox doctor: {} needs a recipe in front of it",
                      a.overrides.empty() ? "" : a.overrides.front());
  std::optional<Recipe> recipe;
  if (!a.positional.empty()) recipe = load_recipe(a.positional[0], a.overrides);
  SessionSetup setup = recipe ? setup_of(*recipe) : SessionSetup{};
  // It is asked what is wrong here: where the recipe's device cannot be used, that is the answer.
  std::string refused;
  if (setup.device == DeviceKind::Cuda && !no_gpu().empty()) {
    refused = "run.device = cuda: " + no_gpu();
    setup.device = DeviceKind::Cpu, setup.precision = Precision::Auto;
  }
  return on_ranks(setup, [&](Session& session) {
    return diagnose(session, a.has("--json"), recipe ? &*recipe : nullptr, refused);
  });
}

}  // namespace emox
