// What plan_run found, for people: a screen.
#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "launch/plan/run_plan.h"
#include "launch/run/sharding.h"

namespace emox {
namespace {

using PlanText = nlohmann::ordered_json;

double mib(const PlanText& bytes) { return bytes.get<double>() / 1048576; }

/// 1234567 -> "1.23 M".
std::string short_number(double x) {
  for (const auto& [unit, name] :
       {std::pair{1e18, " E"}, {1e15, " P"}, {1e12, " T"}, {1e9, " G"}, {1e6, " M"}, {1e3, " k"}})
    if (x >= unit) return fmt::format("{:.3g}{}", x / unit, name);
  return fmt::format("{:.3g}", x);
}

std::string short_time(double s) {
  if (s < 1) return fmt::format("{:.3g} ms", s * 1e3);
  if (s < 120) return fmt::format("{:.3g} s", s);
  if (s < 2 * 3600) return fmt::format("{:.3g} min", s / 60);
  return s < 72 * 3600 ? fmt::format("{:.1f} h", s / 3600) : fmt::format("{:.1f} days", s / 86400);
}

std::string memory_text(const PlanText& plan, bool gpu) {
  std::string text =
      fmt::format("{:<34}{:>12}{:>12}\n", gpu ? "memory of a GPU, MiB" : "memory of a rank, MiB", "least", "most");
  const auto line = [&](const char* what, const char* key) {
    text += fmt::format("{:<34}{:>12.1f}{:>12.1f}\n", what, mib(plan["least"][key]), mib(plan["most"][key]));
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
  return text;
}

std::string times_text(const PlanText& plan, const Recipe& recipe) {
  const auto& step = plan["step"];
  std::string text;
  text += fmt::format("{:<34}{:>12}{:>8}  {}\n", "a step of " + plan["hardware"]["name"].get<std::string>(), "seconds",
                      "share", "limit, tag");
  for (const auto& p : step["phases"]) {
    const double hidden = p["hidden_s"].get<double>();
    text += fmt::format("  {:<32}{:>12.4g}{:>7.1f}%  {}, {}{}\n", p["phase"].get<std::string>(),
                        p["seconds"].get<double>(), 100 * p["share"].get<double>(), p["limit"].get<std::string>(),
                        p["tag"].get<std::string>(), hidden > 0 ? fmt::format("; {} hidden", short_time(hidden)) : "");
  }
  const double band = step["band"].get<double>(), step_s = plan["step_s"].get<double>();
  text += fmt::format("{:<34}{:>12.4g}  +-{:.0f} %: {} tokens/s, MFU {:.1f} %\n", "all", step_s, 100 * band,
                      short_number(plan["tokens_per_s"].get<double>()), 100 * plan["mfu"].get<double>());
  const double hours = plan["hours"].get<double>();
  text += fmt::format(
      "{} steps: {} ({} to {}), {} {}-hours{}\n", recipe.total_steps(), short_time(hours * 3600),
      short_time(hours * 3600 * (1 - band)), short_time(hours * 3600 * (1 + band)),
      short_number(plan["rank_hours"].get<double>()), plan["hardware"]["kind"] == "gpu" ? "GPU" : "rank",
      plan["energy_kwh"].is_null() ? "" : fmt::format(", {} kWh", short_number(plan["energy_kwh"].get<double>())));
  text += fmt::format("a save {} ({} of training), stop lead time {}; save every {} steps\n",
                      short_time(plan["checkpoint"]["save_s"].get<double>()),
                      short_time(plan["checkpoint"]["stops_training_s"].get<double>()),
                      short_time(plan["stop_lead_s"].get<double>()), plan["save_every_steps"].get<std::int64_t>());
  const auto& fit = plan["fit"];
  text += fmt::format("{}: {:.1f} GiB needed, receive buffers at their 99.9th percentile included, {:.1f} GiB there\n",
                      plan["fits"].get<bool>() ? "fits" : "DOES NOT FIT", mib(fit["needs_bytes"]) / 1024,
                      mib(fit["has_bytes"]) / 1024);
  if (plan.contains("nearest")) text += plan["nearest"].get<std::string>() + "\n";
  if (!plan["risk"].is_null())
    text += fmt::format("largest risk: {} ({:.0f} % of the step) is {}; {}\n", plan["risk"]["phase"].get<std::string>(),
                        100 * plan["risk"]["share"].get<double>(), plan["risk"]["tag"].get<std::string>(),
                        plan["risk"]["cure"].get<std::string>());
  return text;
}

}  // namespace

std::string plan_text(const Recipe& recipe, const PlanText& plan) {
  const bool gpu = plan["device"] == "cuda";
  const int ranks = plan["ranks"].get<int>(), per_node = plan["ranks_per_node"].get<int>();
  std::string text = fmt::format("{} on {} ranks{}: experts over {}, {} replica(s)\n", recipe.run.name, ranks,
                                 gpu ? fmt::format(" of a GPU each, in {}", plan["precision"].get<std::string>()) : "",
                                 plan["expert_parallel"].get<int>(), plan["data_parallel"].get<int>());
  if (recipe.model.is_moe() && ranks > 1) text += mesh_line(recipe, nodes_in_order(ranks, per_node)) + "\n";
  text += fmt::format("{} parameters, {} active; {} FLOPs a token, {} tokens a step\n",
                      short_number(plan["parameters"]["total"].get<double>()),
                      short_number(plan["parameters"]["active"].get<double>()),
                      short_number(plan["flops"]["per_token"].get<double>()), recipe.tokens_per_step());
  text += memory_text(plan, gpu);
  const auto& state = plan["state"];
  text += fmt::format("a checkpoint: {:.1f} MiB in {} files, {} pieces, manifest {:.1f} MiB\n",
                      mib(state["checkpoint_bytes"]), state["files"].get<int>(), state["pieces"].get<int>(),
                      mib(state["manifest_bytes"]));
  for (const char* what : {"gradients", "weights"}) {
    const auto& t = state[what];
    text += fmt::format(
        "{} that a rank receives a step: {:.1f} MiB in {} messages between nodes, {:.1f} MiB in {} inside\n", what,
        mib(t["bytes_inter_node"]), t["messages_inter_node"].get<std::int64_t>(), mib(t["bytes_intra_node"]),
        t["messages_intra_node"].get<std::int64_t>());
  }
  if (const auto& d = plan["dispatch"]; !d.is_null() && plan["expert_parallel"].get<int>() > 1)
    text += fmt::format(
        "a token visits {:.2f} ranks, {:.2f} nodes; rows a rank sends for a layer and step: {:.1f} MiB inside "
        "nodes, {:.1f} between\n",
        d["ranks_per_token"].get<double>(), d["nodes_per_token"].get<double>(), mib(d["bytes_per_layer_inside_nodes"]),
        mib(d["bytes_per_layer_between_nodes"]));
  if (plan["forward_twice"].get<bool>()) text += "The forward pass runs twice (train.micro_batch_memory).\n";
  if (plan.contains("step_s")) text += times_text(plan, recipe);
  return text;
}

std::string search_text(const PlanText& found) {
  std::string text = fmt::format("{:<16}{:>10}{:>14}{:>14}{:>12}{:>12}  {}\n", "expert_parallel", "replicas",
                                 "micro_batch", "step, s", "tokens/s", "GiB", "fits");
  std::size_t lines = 0;
  for (const auto& m : found["meshes"]) {
    text += fmt::format("{:<16}{:>10}{:>14}{:>14.4g}{:>12}{:>12.1f}  {}\n", m["expert_parallel"].get<int>(),
                        m["data_parallel"].get<int>(), m["micro_batch_sequences"].get<std::int64_t>(),
                        m["step_s"].get<double>(), short_number(m["tokens_per_s"].get<double>()),
                        mib(m["memory_bytes"]) / 1024, m["fits"].get<bool>() ? "yes" : "no");
    if (++lines == 16) break;  // --json has all
  }
  if (found["meshes"].size() > lines) text += fmt::format("... {} in all\n", found["meshes"].size());
  for (const auto& r : found["refused"])
    text += fmt::format("expert_parallel = {}: {}\n", r["expert_parallel"].get<int>(), r["why"].get<std::string>());
  return text;
}

}  // namespace emox
