#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "launch/commands/command.h"
#include "launch/config/arguments.h"
#include "launch/config/recipe_file.h"
#include "launch/run/failure.h"
#include "launch/run/lease_holder.h"
#include "launch/run/run_directory.h"
#include "launch/run/run_status.h"
#include "parallel/checkpoint/layout.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/telemetry/json_text.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

std::int64_t newest_step(const fs::path& checkpoints) {
  const auto saved = list_checkpoints(checkpoints);
  return saved.empty() ? 0 : step_of_directory(saved.front().filename().string()).value_or(0);
}

/// Of a run whose jobs were killed before they wrote a status, or of a version that wrote none.
RunStatus by_its_files(const RunDirectory& run) {
  RunStatus s;
  s.state = RunState::Stopped;
  s.saved_step = s.step = newest_step(run.checkpoints());
  try {
    s.steps = load_recipe(run.recipe().string()).total_steps();
    if (s.step == s.steps) s.state = RunState::Finished;
  } catch (const UsageError&) {  // no recipe yet, or another version's
  }
  return s;
}

/// What the file says, and whether somebody is there who still says so.
RunStatus status_of(const RunDirectory& run) {
  const auto written = RunStatus::read(run.root());
  RunStatus s = written ? *written : by_its_files(run);
  if (const auto holder = holder_now(run.root())) {
    s.state = RunState::Running;
    s.host = holder->host, s.pid = holder->pid;
    s.reason = s.signal = "";
    s.saved_step = newest_step(run.checkpoints());
  } else if (s.state == RunState::Running) {
    s.state = RunState::Failed;
    s.reason = fmt::format("ended without a word after {}: killed, or its node was lost", s.updated);
    s.saved_step = newest_step(run.checkpoints());
  }
  return s;
}

bool is_run(const fs::path& path) {
  std::error_code none;
  const RunDirectory run(path);
  return fs::exists(run.manifest(), none) || fs::exists(path / "status.json", none) || run.has_checkpoints();
}

/// The run itself, or the cells of a study.
std::vector<fs::path> runs_at(const fs::path& path) {
  std::error_code error;
  if (is_run(path)) return {path};
  std::vector<fs::path> cells;
  if (fs::is_directory(path / "cells", error))
    for (const auto& entry : fs::directory_iterator(path / "cells", error))
      if (is_run(entry.path())) cells.push_back(entry.path());
  std::sort(cells.begin(), cells.end());
  require<UsageError>(!cells.empty(), "emox status: {} is no run: {}", path.string(),
                      fs::exists(path, error)
                          ? "it holds neither run.json nor checkpoints"
                          : "there is no such directory; runs lie in runs/NAME, or where run.dir says");
  return cells;
}

std::string of_steps(const RunStatus& s) {
  return s.steps > 0 ? fmt::format("{}/{}", s.step, s.steps) : fmt::format("{}", s.step);
}

}  // namespace

int run_status(const std::vector<std::string>& args) {
  const Arguments a = parse_args(args, {.command = "emox status",
                                        .flags = {"--json"},
                                        .min_positional = 1,
                                        .max_positional = 1 << 20,
                                        .positional = "RUN..."});
  std::vector<fs::path> runs;
  for (const std::string& name : a.positional)
    for (fs::path& run : runs_at(name)) runs.push_back(std::move(run));
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  std::size_t width = 4;
  for (const fs::path& run : runs) width = std::max(width, run.string().size());
  if (!a.has("--json"))
    fmt::print("{:<{}}  {:<9}{:>15}{:>10}  {:<12}{:>9}  {}\n", "run", width, "state", "step", "saved", "job",
               "restarts", "updated");
  for (const fs::path& path : runs) {
    const RunStatus s = status_of(RunDirectory(path));
    if (a.has("--json")) {
      nlohmann::ordered_json entry = {{"run", path.string()}};
      entry.update(s.to_json());
      all.push_back(std::move(entry));
      continue;
    }
    fmt::print("{:<{}}  {:<9}{:>15}{:>10}  {:<12}{:>9}  {}\n", path.string(), width, kRunStateNames[idx(s.state)],
               of_steps(s), s.saved_step, s.job.empty() ? "-" : s.job, s.restarts, s.updated);
    if (!s.reason.empty()) fmt::print("{:<{}}  {}\n", "", width, s.reason);
  }
  if (a.has("--json")) fmt::print("{}\n", json_text(nlohmann::ordered_json{{"runs", all}}));
  return kDone;
}

}  // namespace emox
