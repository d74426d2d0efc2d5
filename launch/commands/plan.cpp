#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "launch/commands/command.h"
#include "launch/config/arguments.h"
#include "launch/config/recipe_file.h"
#include "launch/plan/memory.h"
#include "launch/plan/state_plan.h"
#include "launch/run/failure.h"
#include "launch/run/session.h"
#include "launch/run/sharding.h"
#include "runtime/core/error.h"
#include "runtime/telemetry/metrics.h"

namespace emox {

int run_plan(const std::vector<std::string>& args) {
  const Arguments a = parse_args(args, {.command = "emox plan",
                                        .flags = {"--json"},
                                        .options = {"--ranks", "--nodes", "--ranks-per-node"},
                                        .overrides = true,
                                        .min_positional = 1,
                                        .max_positional = 1,
                                        .positional = "RECIPE.ini"});
  const Recipe recipe = load_recipe(a.positional[0], a.overrides);
  const auto number = [&](const char* option, int otherwise) {
    return a.has(option) ? whole_number("emox plan", option, a.value(option), 1) : otherwise;
  };
  require<UsageError>(!a.has("--ranks") || !a.has("--nodes"), "emox plan: give --ranks or --nodes, not both");
  const int per_node = number("--ranks-per-node", 8);
  const int ranks =
      a.has("--nodes")
          ? number("--nodes", 1) * per_node
          : number("--ranks", static_cast<int>(std::max<std::int64_t>(recipe.parallel.expert_parallel, 1)));
  const int threads = recipe.train.threads > 0 ? static_cast<int>(recipe.train.threads) : default_threads(per_node);
  const DeviceChoice device = planned_device(recipe);
  auto plan = plan_memory(recipe, ranks, per_node, threads, device);
  plan["state"] = to_json(plan_state(recipe, ranks, per_node, device.activations));
  if (a.has("--json")) {
    fmt::print("{}\n", to_line(plan));
    return kDone;
  }
  const bool gpu = device.on_gpu();
  fmt::print("{} on {} ranks{}: experts over {}, {} replica(s)\n", recipe.run.name, ranks,
             gpu ? fmt::format(" of a GPU each, in {}", name_of(device.activations)) : "",
             plan["expert_parallel"].get<int>(), plan["data_parallel"].get<int>());
  if (recipe.model.is_moe() && ranks > 1) fmt::print("{}\n", mesh_line(recipe, nodes_in_order(ranks, per_node)));
  fmt::print("{:<32}{:>12}{:>12}\n", gpu ? "memory of a GPU, MiB" : "memory of a rank, MiB", "least", "most");
  const auto line = [&](const char* text, const char* key) {
    fmt::print("{:<32}{:>12.1f}{:>12.1f}\n", text, plan["least"][key].get<double>() / 1048576,
               plan["most"][key].get<double>() / 1048576);
  };
  line("weights and gradients", "weights_and_gradients");
  line("  routed experts' weights", "expert_weights");
  line("optimizer", "optimizer");
  line("activations", "activations");
  if (gpu) {
    line("CUDA, its libraries (a guess)", "libraries");
    line("scratch of the ops, at most", "op_scratch");
  } else {
    line("copy of the state for saving", "checkpoint");
  }
  line("all, before the first step", "total");
  if (gpu) line("host: copy for saving, staging", "host");
  const auto& state = plan["state"];
  const auto mib = [](const nlohmann::ordered_json& bytes) { return bytes.get<double>() / 1048576; };
  fmt::print("a checkpoint: {:.1f} MiB in {} files, {} pieces, manifest {:.1f} MiB\n", mib(state["checkpoint_bytes"]),
             state["files"].get<int>(), state["pieces"].get<int>(), mib(state["manifest_bytes"]));
  for (const char* what : {"gradients", "weights"}) {
    const auto& t = state[what];
    fmt::print("{} that a rank receives a step: {:.1f} MiB in {} messages between nodes, {:.1f} MiB in {} inside\n",
               what, mib(t["bytes_inter_node"]), t["messages_inter_node"].get<std::int64_t>(),
               mib(t["bytes_intra_node"]), t["messages_intra_node"].get<std::int64_t>());
  }
  if (plan["forward_twice"].get<bool>()) fmt::print("The forward pass runs twice (train.micro_batch_memory).\n");
  return kDone;
}

}  // namespace emox
