#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>

#include "launch/bench/checkpoint_bench.h"
#include "launch/bench/dispatch_bench.h"
#include "launch/bench/exchange_bench.h"
#include "launch/bench/homes_replay.h"
#include "launch/bench/rates_bench.h"
#include "launch/bench/scale_bench.h"
#include "launch/bench/step_bench.h"
#include "launch/commands/command.h"
#include "launch/config/arguments.h"
#include "launch/config/recipe_file.h"
#include "launch/run/failure.h"
#include "launch/run/on_ranks.h"
#include "parallel/comm/together.h"
#include "parallel/expert/placement_optimiser.h"
#include "runtime/core/error.h"
#include "runtime/files/atomic_file.h"
#include "runtime/telemetry/metrics.h"

namespace emox {
namespace {

void print_step(const nlohmann::ordered_json& r) {
  fmt::print("{} on {}\n", r["preset"].get<std::string>(), r["processor"].get<std::string>());
  fmt::print("step {:.4f} s (min {:.4f}, max {:.4f}), {:.0f} tokens/s, {} rank(s) x {} thread(s)\n",
             r["step_s"].get<double>(), r["step_min_s"].get<double>(), r["step_max_s"].get<double>(),
             r["tokens_per_s"].get<double>(), r["ranks"].get<int>(), r["threads"].get<int>());
  fmt::print("GEMM floor {:.4f} s at {:.0f} GFLOP/s ({}): ratio {:.3f}, {:.1f} % of GEMM\n",
             r["gemm_floor_s"].get<double>(), r["gemm_gflops"].get<double>(), r["precision"].get<std::string>(),
             r["ratio"].get<double>(), 100 * r["gemm_fraction"].get<double>());
  fmt::print("forward and backward {:.4f} s, {:.1f} % of GEMM; update {:.4f} s\n", r["gradients_s"].get<double>(),
             100 * r["gradients_gemm_fraction"].get<double>(), r["update_s"].get<double>());
  if (const auto& memory = r["device_memory"]; !memory.is_null()) {
    const auto mib = [&](const char* key) { return memory[key].get<double>() / 1048576; };
    fmt::print("memory of the GPU, MiB: tensors {:.0f} at most, scratch of the ops {:.0f}, in use {:.0f}\n",
               mib("tensors_peak"), mib("op_scratch"), mib("in_use"));
  }
  if (!r["routing_share"].is_null())  // a dense model has none
    fmt::print("MoE layers: {:.1f} % for router, pools, plan and moving rows, the rest for experts\n",
               100 * r["routing_share"].get<double>());
  if (!r.contains("ops")) return;
  fmt::print("limits: {:.0f} GFLOP/s, {:.0f} GB/s\n", r["gemm_gflops"].get<double>(), r["copy_gb_s"].get<double>());
  fmt::print("{:<24} {:>6} {:>10} {:>7} {:>17}  of limit\n", "op", "calls", "ms", "share", "rate");
  for (const auto& op : r["ops"]) {
    const bool gemm = op["limit"] == "gemm";
    const auto& rate = op[gemm ? "gflop_per_s" : "gb_per_s"];
    fmt::print("{:<24} {:>6} {:>10.3f} {:>6.1f}% {:>9} {:<7}  {} {}\n", op["op"].get<std::string>(),
               op["calls"].get<std::int64_t>(), 1e3 * op["seconds"].get<double>(), 100 * op["share"].get<double>(),
               rate.is_null() ? "-" : fmt::format("{:.1f}", rate.get<double>()),
               rate.is_null() ? ""
               : gemm         ? "GFLOP/s"
                              : "GB/s",
               op["fraction_of_limit"].is_null()
                   ? "    -"
                   : fmt::format("{:>4.0f}%", 100 * op["fraction_of_limit"].get<double>()),
               op["limit"].get<std::string>());
  }
}

/// UsageError for an option that is another benchmark's.
void allow(const Arguments& a, const std::string& what, const std::vector<std::string>& options) {
  for (const auto& [option, value] : a.options)
    require<UsageError>(option == "--json" || std::find(options.begin(), options.end(), option) != options.end(),
                        "emox bench {}: {} is for another benchmark; here: {} --json", what, option,
                        fmt::join(options, " "));
}

Recipe recipe_of(const Arguments& a) {
  require<UsageError>(a.positional.size() == 1 || !a.has("--preset"),
                      "emox bench: give a recipe or --preset, not both");
  return a.positional.size() == 2
             ? load_recipe(a.positional[1], a.overrides)
             : parse_recipe(to_ini(bench_preset(a.value("--preset", "small"))), "the preset", a.overrides);
}

int run_checkpoint_bench(const Arguments& a) {
  allow(a, "checkpoint", {"--preset", "--dir", "--repeats"});
  const Recipe recipe = recipe_of(a);
  CheckpointBenchOptions options;
  options.directory = a.value("--dir", "bench-checkpoint");
  if (a.has("--repeats")) options.repeats = whole_number("emox bench", "--repeats", a.value("--repeats"), 1);
  SessionSetup setup = setup_of(recipe);
  require<UsageError>(setup.device != DeviceKind::Cuda,
                      "emox bench checkpoint measures files and host memory: leave out run.device = cuda");
  setup.device = DeviceKind::Cpu, setup.precision = Precision::Auto;
  return on_ranks(setup, [&](Session& session) {
    recipe.validate(session.comm().size());
    const auto result = bench_checkpoint(session, recipe, options);
    if (session.root()) fmt::print("{}", a.has("--json") ? to_line(result) + "\n" : checkpoint_table(result));
    return static_cast<int>(kDone);
  });
}

int run_step_bench(const Arguments& a, const std::string& what) {
  allow(a, what, {"--preset", "--steps"});
  const Recipe recipe = recipe_of(a);
  StepBenchOptions options;
  if (a.has("--steps")) options.steps = whole_number("emox bench", "--steps", a.value("--steps"), 1);
  return on_ranks(setup_of(recipe), [&](Session& session) {
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

// A hardware file, for emox plan.
int run_rates_bench(const Arguments& a) {
  allow(a, "rates", {"--output", "--dir", "--steps", "--force", "--widths"});
  require<UsageError>(a.positional.size() == 1,
                      "emox bench rates measures the machine, with models of its own: it takes "
                      "no recipe");
  const std::string output = a.value("--output");
  RatesBenchOptions options;
  options.directory = a.value("--dir", ".");
  if (a.has("--steps")) options.steps = whole_number("emox bench", "--steps", a.value("--steps"), 1);
  if (a.has("--widths")) {
    std::istringstream widths(a.value("--widths"));
    for (std::string width; std::getline(widths, width, ',');) {
      options.widths.push_back(whole_number("emox bench", "--widths", width, 32));
      require<UsageError>(width.size() < 6 && options.widths.back() % 32 == 0,
                          "emox bench rates: --widths {}: multiples of 32 below 100000, separated by commas", width);
    }
  }
  if (!output.empty()) {
    require<UsageError>(output.ends_with(".json"), "emox bench rates: --output = {}: the name must end in .json",
                        output);
    require<UsageError>(a.has("--force") || !std::filesystem::exists(output),
                        "{} exists: --force replaces it, or name another file", output);
  }
  require<UsageError>(std::filesystem::is_directory(options.directory), "emox bench rates: --dir = {} is no directory",
                      options.directory.string());
  const Recipe recipe = parse_recipe(to_ini(bench_preset("small")), "the preset", a.overrides);
  return on_ranks(setup_of(recipe), [&](Session& session) {
    const Hardware h = bench_rates(session, options);
    on_root(session.comm(), [&] {
      const std::string text = to_json(h).dump(2) + "\n";
      if (output.empty())
        fmt::print("{}", text);
      else
        write_file_atomically(output, text);
    });
    if (session.root() && !output.empty())
      fmt::print("{}: {:.0f} GFLOP/s, {:.1f} GB/s a rank of {} a node; emox plan RECIPE.ini --hardware {}\n{}", output,
                 h.gemm.value / 1e9, h.copy.value / 1e9, h.ranks_per_node, output,
                 h.note.empty() ? "" : "warning: " + h.note + "\n");
    return static_cast<int>(kDone);
  });
}

// With a recipe, the ranks that were started run its dispatch.
int run_exchange_bench(const Arguments& a) {
  allow(a, "dispatch RECIPE.ini", {"--repeats"});
  const Recipe recipe = recipe_of(a);
  const int repeats = a.has("--repeats") ? whole_number("emox bench", "--repeats", a.value("--repeats"), 1) : 20;
  return on_ranks(setup_of(recipe), [&](Session& session) {
    recipe.validate(session.comm().size());
    const auto result = bench_exchange(session, recipe, repeats);
    if (session.root()) fmt::print("{}", a.has("--json") ? to_line(result) + "\n" : exchange_table(result));
    return static_cast<int>(kDone);
  });
}

// Plans ranks that need not exist, so one process is enough.
int run_dispatch_bench(const Arguments& a) {
  if (a.positional.size() == 2) return run_exchange_bench(a);
  require<UsageError>(
      a.overrides.empty(),
      "emox bench dispatch: keys need a recipe, whose dispatch the ranks then run; without one it plans "
      "ranks that need not exist");
  allow(a, "dispatch",
        {"--replay", "--expert-parallel", "--data-parallel", "--ranks-per-node", "--placement", "--placement-seed",
         "--homes", "--sequences", "--load-limit", "--width"});
  const auto number = [&](const char* option, int otherwise) {
    return a.has(option) ? whole_number("emox bench", option, a.value(option), 1) : otherwise;
  };
  const PlannedMesh mesh{number("--expert-parallel", 8), number("--data-parallel", 1), number("--ranks-per-node", 8)};
  nlohmann::ordered_json result;
  bool homes = false;
  if (a.has("--replay")) {
    require<UsageError>(a.value("--homes", "off") == "off" || a.value("--homes") == "affinity",
                        "emox bench dispatch: --homes = {}: use off or affinity", a.value("--homes"));
    const ReplayOptions options{.placement = a.value("--placement", "block"),
                                .placement_seed = static_cast<std::uint64_t>(whole_number(
                                    "emox bench", "--placement-seed", a.value("--placement-seed", "0"), 0)),
                                .width = number("--width", 2048),
                                .sequences = number("--sequences", 4),
                                .load_limit = load_limit_of(a.value("--load-limit", "1.05"))};
    homes = a.value("--homes", "off") == "affinity";
    require<UsageError>(
        homes || !a.has("--sequences"),
        "emox bench dispatch: --sequences is for --homes affinity: without, documents are dealt in turn");
    result =
        homes ? replay_homes(a.value("--replay"), mesh, options) : replay_dispatch(a.value("--replay"), mesh, options);
  } else {
    require<UsageError>(!a.has("--placement") && !a.has("--placement-seed") && !a.has("--homes") &&
                            !a.has("--sequences") && !a.has("--load-limit"),
                        "emox bench dispatch: --placement is for --replay; synthetic documents are planned with random "
                        "and with clustered placement");
    DispatchBenchOptions options;
    if (a.has("--expert-parallel") || a.has("--data-parallel") || a.has("--ranks-per-node")) options.meshes = {mesh};
    options.width = number("--width", 2048);
    result = bench_dispatch(options);
  }
  if (a.has("--json"))
    fmt::print("{}\n", to_line(result));
  else
    fmt::print("{}", homes ? homes_table(result) : dispatch_table(result));
  return kDone;
}

// So are these.
int run_scale_bench(const Arguments& a) {
  require<UsageError>(a.positional.size() == 2, "emox bench scale: for which model? Name a recipe");
  allow(a, "scale", {"--nodes", "--ranks-per-node"});
  ScaleBenchOptions options;
  if (a.has("--ranks-per-node"))
    options.ranks_per_node = whole_number("emox bench", "--ranks-per-node", a.value("--ranks-per-node"), 1);
  if (a.has("--nodes"))
    options.ranks = {options.ranks_per_node * whole_number("emox bench", "--nodes", a.value("--nodes"), 1)};
  const auto result = bench_scale(load_recipe(a.positional[1], a.overrides), options);
  fmt::print("{}", a.has("--json") ? to_line(result) + "\n" : scale_table(result));
  return kDone;
}

}  // namespace

int run_bench(const std::vector<std::string>& args) {
  const Arguments a =
      parse_args(args, {.command = "emox bench",
                        .flags = {"--json", "--force"},
                        .options = {"--preset", "--steps", "--replay", "--expert-parallel", "--data-parallel",
                                    "--ranks-per-node", "--placement", "--placement-seed", "--homes", "--sequences",
                                    "--load-limit", "--width", "--dir", "--repeats", "--nodes", "--output", "--widths"},
                        .overrides = true,
                        .min_positional = 1,
                        .max_positional = 2,
                        .positional = "step|ops|dispatch|checkpoint|scale|rates [RECIPE.ini]"});
  const std::string& what = a.positional[0];
  require<UsageError>(what == "step" || what == "ops" || what == "dispatch" || what == "checkpoint" ||
                          what == "scale" || what == "rates",
                      "emox bench: unknown benchmark {}: use step, ops, dispatch, checkpoint, scale or rates", what);
  if (what == "rates") return run_rates_bench(a);
  if (what == "scale") return run_scale_bench(a);
  if (what == "checkpoint") return run_checkpoint_bench(a);
  return what == "dispatch" ? run_dispatch_bench(a) : run_step_bench(a, what);
}

}  // namespace emox
