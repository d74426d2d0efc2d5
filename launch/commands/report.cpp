// `emox report`: runs beside each other.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "launch/analysis/runs/run_report.h"
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

/// A run's directory, or one that holds some: those, by name.
std::vector<fs::path> run_directories(const std::vector<std::string>& names) {
  std::vector<fs::path> found;
  std::error_code none;
  for (const std::string& name : names) {
    if (!fs::is_directory(name, none) || fs::exists(fs::path(name) / "recipe.ini", none)) {
      found.emplace_back(name);
      continue;
    }
    std::vector<fs::path> inside;
    for (const auto& entry : fs::directory_iterator(name, none))
      if (fs::exists(entry.path() / "run.json", none)) inside.push_back(entry.path());
    require<UsageError>(!inside.empty(),
                        "{} is no run of emox, and holds none: name the directories of runs, or one that "
                        "they are in",
                        name);
    std::sort(inside.begin(), inside.end());
    found.insert(found.end(), inside.begin(), inside.end());
  }
  for (std::size_t i = 0; i < found.size(); ++i)
    for (std::size_t j = 0; j < i; ++j)
      require<UsageError>(!fs::equivalent(found[i], found[j], none), "emox report: {} is named twice",
                          found[i].string());
  return found;
}

std::vector<RunHistory> read_all(const std::vector<std::string>& names) {
  std::vector<RunHistory> runs;
  for (const fs::path& directory : run_directories(names)) runs.push_back(read_history(directory));
  return runs;
}

void check_output(const Arguments& a, const char* option, const std::string& file, const char* extension) {
  require<UsageError>(file.ends_with(extension), "emox report: {} = {}: the name must end in {}", option, file,
                      extension);
  require<UsageError>(a.has("--force") || !fs::exists(file), "{} exists: --force replaces it, or name another file",
                      file);
  require_outside_checkpoints("emox report", file);
}

}  // namespace

int run_report(const std::vector<std::string>& args) {
  const Arguments a = parse_args(args, {.command = "emox report",
                                        .flags = {"--json", "--force"},
                                        .options = {"--output", "--csv", "--title"},
                                        .lists = {"--against"},
                                        .min_positional = 1,
                                        .max_positional = 100000,
                                        .positional = "RUN..."});
  const std::string html = a.value("--output"), csv = a.value("--csv");
  if (!html.empty()) check_output(a, "--output", html, ".html");
  if (!csv.empty()) check_output(a, "--csv", csv, ".csv");
  const RunReport report = make_report(read_all(a.positional), read_all(a.list("--against")));
  if (!html.empty())
    write_file_atomically(
        html,
        runs_html(report, a.value("--title", report.runs.size() == 1 ? report.figures.front().name
                                                                     : fmt::format("{} runs", report.runs.size()))));
  if (!csv.empty()) write_file_atomically(csv, runs_csv(report));
  if (a.has("--json")) {
    fmt::print("{}\n", json_text(runs_json(report)));
    return kDone;
  }
  fmt::print("{}", runs_text(report));
  for (const std::string& file : {html, csv})
    if (!file.empty()) fmt::print("written: {}\n", file);
  if (html.empty()) fmt::print("--output FILE.html writes curves, scaling, phases, traffic and a scaling law.\n");
  return kDone;
}

}  // namespace emox
