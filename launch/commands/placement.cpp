// `emox placement`: where experts would best be, from a recording.
#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "launch/analysis/placement/placement_study.h"
#include "launch/commands/command.h"
#include "launch/config/arguments.h"
#include "launch/run/failure.h"
#include "launch/run/run_directory.h"
#include "runtime/core/error.h"
#include "runtime/files/atomic_file.h"
#include "runtime/telemetry/json_text.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

/// A recording's own name, or the one that a run made last.
fs::path recording_of(const std::string& name) {
  std::error_code none;
  if (!fs::is_directory(name, none)) return name;
  const auto made = RunDirectory(name).outputs_of("--record-pools");
  require<UsageError>(!made.empty(), "{} recorded no pools: train with --record-pools FILE, and name the run or FILE",
                      name);
  return made.back();
}

}  // namespace

int run_placement(const std::vector<std::string>& args) {
  const Arguments a = parse_args(
      args, {.command = "emox placement",
             .flags = {"--json", "--force"},
             .options = {"--expert-parallel", "--ranks-per-node", "--output", "--from-step", "--seed", "--load-limit"},
             .min_positional = 1,
             .max_positional = 1,
             .positional = "RUN|RECORDING"});
  const auto number = [&](const char* option, int otherwise, int least) {
    return a.has(option) ? whole_number("emox placement", option, a.value(option), least) : otherwise;
  };
  require<UsageError>(a.has("--expert-parallel"), "emox placement: over how many ranks? Give --expert-parallel R");
  PlacementStudyOptions o;
  o.request.ranks = number("--expert-parallel", 1, 1);
  o.request.ranks_per_node = number("--ranks-per-node", 8, 1);
  o.request.seed = static_cast<std::uint64_t>(number("--seed", 0, 0));
  o.request.load_limit = load_limit_of(a.value("--load-limit", "1.05"));
  o.from_step = number("--from-step", 0, 0);
  const std::string output = a.value("--output");
  if (!output.empty()) {
    require<UsageError>(output.ends_with(".json"), "emox placement: --output = {}: the name must end in .json", output);
    require<UsageError>(a.has("--force") || !fs::exists(output), "{} exists: --force replaces it, or name another file",
                        output);
    require_outside_checkpoints("emox placement", output);
  }
  const PlacementStudy study = study_placement(recording_of(a.positional[0]), o);
  if (!output.empty()) {
    nlohmann::json file = study.chosen.placement.to_json();
    write_file_atomically(output, file.dump() + "\n");
  }
  if (a.has("--json")) {
    fmt::print("{}\n", json_text(to_json(study, o.request)));
    return kDone;
  }
  fmt::print("{}", placement_table(study, o.request));
  if (!output.empty())
    fmt::print(
        "written: {}; use it with --parallel.placement=file --parallel.placement_file={} "
        "--parallel.expert_parallel={}\n",
        output, output, o.request.ranks);
  return kDone;
}

}  // namespace emox
