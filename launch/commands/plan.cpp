#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "launch/commands/command.h"
#include "launch/config/arguments.h"
#include "launch/config/recipe_file.h"
#include "launch/plan/run_plan.h"
#include "launch/run/failure.h"
#include "launch/run/session.h"
#include "runtime/core/error.h"
#include "runtime/telemetry/metrics.h"

namespace emox {
namespace {

double real_number(const Arguments& a, const char* option, double otherwise, double least) {
  if (!a.has(option)) return otherwise;
  const std::string text = a.value(option);
  double x = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), x);
  require<UsageError>(error == std::errc() && end == text.data() + text.size() && x >= least && x < 1e12,
                      "emox plan: {} = {} is no number of at least {}", option, text, least);
  return x;
}

PlanRequest request_of(const Arguments& a, const Recipe& recipe, std::optional<Hardware> hardware) {
  const auto number = [&](const char* option, int otherwise) {
    return a.has(option) ? whole_number("emox plan", option, a.value(option), 1) : otherwise;
  };
  require<UsageError>(!a.has("--ranks") || !a.has("--nodes"), "emox plan: give --ranks or --nodes, not both");
  PlanRequest r;
  r.hardware = std::move(hardware);
  r.ranks_per_node = number("--ranks-per-node", r.hardware ? r.hardware->ranks_per_node : 8);
  r.ranks = a.has("--nodes")
                ? number("--nodes", 1) * r.ranks_per_node
                : number("--ranks", static_cast<int>(std::max<std::int64_t>(recipe.parallel.expert_parallel, 1)));
  r.threads = recipe.train.threads > 0 ? static_cast<int>(recipe.train.threads)
              : r.hardware             ? r.hardware->threads
                                       : default_threads(r.ranks_per_node);
  r.device = planned_device(recipe);
  r.document_tokens = real_number(a, "--document-tokens", r.document_tokens, 1);
  r.imbalance = real_number(a, "--imbalance", r.imbalance, 1);
  return r;
}

}  // namespace

int run_plan(const std::vector<std::string>& args) {
  const Arguments a = parse_args(
      args, {.command = "emox plan",
             .flags = {"--json", "--search"},
             .options = {"--ranks", "--nodes", "--ranks-per-node", "--hardware", "--document-tokens", "--imbalance"},
             .overrides = true,
             .min_positional = 1,
             .max_positional = 1,
             .positional = "RECIPE.ini"});
  Recipe recipe = load_recipe(a.positional[0], a.overrides);
  std::optional<Hardware> hardware;
  if (a.has("--hardware")) hardware = load_hardware(a.value("--hardware"));
  // A plan is for the hardware that it names, not for this machine.
  if (hardware && recipe.run.device == DeviceKind::Auto)
    recipe.run.device = hardware->gpu ? DeviceKind::Cuda : DeviceKind::Cpu;
  const PlanRequest request = request_of(a, recipe, std::move(hardware));
  if (a.has("--search")) {
    const auto found = search_meshes(recipe, request);
    fmt::print("{}", a.has("--json") ? to_line(found) + "\n" : search_text(found));
    return kDone;
  }
  auto plan = plan_run(recipe, request);
  if (plan.contains("fits") && !plan["fits"].get<bool>()) plan["nearest"] = nearest_that_fits(recipe, request);
  fmt::print("{}", a.has("--json") ? to_line(plan) + "\n" : plan_text(recipe, plan));
  return kDone;
}

}  // namespace emox
