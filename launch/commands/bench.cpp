#include <fmt/format.h>

#include "launch/bench/step_bench.h"
#include "launch/commands/command.h"
#include "launch/commands/on_ranks.h"
#include "launch/config/recipe_file.h"
#include "runtime/core/error.h"
#include "runtime/telemetry/metrics.h"

namespace emox {
namespace {

int whole_number(const std::string& option, const std::string& text) {
  std::size_t used = 0;
  int value = 0;
  try {
    value = std::stoi(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  require<UsageError>(used == text.size() && value > 0, "emox bench: {} = '{}' is not a positive whole number", option,
                      text);
  return value;
}

void print_step(const nlohmann::ordered_json& r) {
  fmt::print("{} on {}\n", r["preset"].get<std::string>(), r["processor"].get<std::string>());
  fmt::print("step {:.4f} s (min {:.4f}, max {:.4f}), {:.0f} tokens/s, {} rank(s) x {} thread(s)\n",
             r["step_s"].get<double>(), r["step_min_s"].get<double>(), r["step_max_s"].get<double>(),
             r["tokens_per_s"].get<double>(), r["ranks"].get<int>(), r["threads"].get<int>());
  fmt::print("GEMM floor {:.4f} s at {:.0f} GFLOP/s: ratio {:.3f}\n", r["gemm_floor_s"].get<double>(),
             r["gemm_gflops"].get<double>(), r["ratio"].get<double>());
  if (!r.contains("ops")) return;
  fmt::print("{:<24} {:>6} {:>10} {:>7}  of limit\n", "op", "calls", "ms", "share");
  for (const auto& op : r["ops"])
    fmt::print("{:<24} {:>6} {:>10.2f} {:>6.1f}%  {:>4.0f}% {}\n", op["op"].get<std::string>(),
               op["calls"].get<std::int64_t>(), 1e3 * op["seconds"].get<double>(), 100 * op["share"].get<double>(),
               100 * op["fraction_of_limit"].get<double>(), op["limit"].get<std::string>());
}

}  // namespace

int run_bench(const std::vector<std::string>& args) {
  const Arguments a = parse_args(args, {.command = "emox bench",
                                        .flags = {"--json"},
                                        .options = {"--preset", "--steps"},
                                        .overrides = true,
                                        .min_positional = 1,
                                        .max_positional = 2,
                                        .positional = "step|ops [RECIPE.ini]"});
  const std::string& what = a.positional[0];
  require<UsageError>(what == "step" || what == "ops", "emox bench: unknown benchmark {}: use step or ops", what);
  require<UsageError>(a.positional.size() == 1 || !a.has("--preset"),
                      "emox bench: give a recipe or --preset, not both");
  Recipe recipe = a.positional.size() == 2
                      ? load_recipe(a.positional[1], a.overrides)
                      : parse_recipe(to_ini(bench_preset(a.value("--preset", "small"))), "the preset", a.overrides);
  StepBenchOptions options;
  if (a.has("--steps")) options.steps = whole_number("--steps", a.value("--steps"));
  return on_ranks(recipe.parallel, recipe.train.threads, [&](Session& session) {
    recipe.validate(session.comm().size());
    const auto result = bench_step(session, recipe, options, what == "ops");
    if (session.root()) {
      if (a.has("--json"))
        fmt::print("{}\n", to_line(result));
      else
        print_step(result);
    }
    return static_cast<int>(kDone);
  });
}

}  // namespace emox
