#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "launch/commands/command.h"
#include "launch/config/arguments.h"
#include "launch/config/nearest.h"
#include "launch/config/recipe_file.h"
#include "launch/job_script/job_script.h"
#include "launch/plan/run_plan.h"
#include "launch/run/failure.h"
#include "launch/run/run_status.h"
#include "runtime/core/error.h"
#include "runtime/files/atomic_file.h"

namespace emox {
namespace {

constexpr const char* kCommand = "emox slurm";
constexpr int kSlurmLate = 60;    // Slurm sends the signal up to a minute early, and has been seen to be late
constexpr int kUnmeasured = 300;  // seconds, where no run has measured a save

JobKind parse_kind(const std::string& name) {
  const auto* const found = std::find(std::begin(kJobKindNames), std::end(kJobKindNames), name);
  require<UsageError>(found != std::end(kJobKindNames),
                      "{}: --command={} is not one of train, study, eval: did you mean {}?", kCommand, name,
                      nearest(name, {std::begin(kJobKindNames), std::end(kJobKindNames)}));
  return static_cast<JobKind>(found - std::begin(kJobKindNames));
}

/// Where no run has measured them: by the model of `emox plan`, the step at the end of its band.
struct PlannedTimes {
  double step_s = 0, save_s = 0;
  std::string hardware;  ///< empty: not planned
};
PlannedTimes planned_times(const Arguments& a, const JobScript& job) {
  if (!a.has("--hardware")) return {};
  require<UsageError>(!a.has("--array") && job.kind == JobKind::Train,
                      "{}: --hardware plans the lead time of one training run: leave it out here", kCommand);
  Recipe recipe = load_recipe(a.positional.front(), a.overrides);
  PlanRequest request;
  request.hardware = load_hardware(a.value("--hardware"));
  request.ranks = job.nodes * job.ranks_per_node, request.ranks_per_node = job.ranks_per_node;
  request.threads = request.hardware->threads;
  if (recipe.run.device == DeviceKind::Auto)
    recipe.run.device = request.hardware->gpu ? DeviceKind::Cuda : DeviceKind::Cpu;
  request.device = planned_device(recipe);
  const auto plan = plan_run(recipe, request);
  return {plan["step_s"].get<double>() * (1 + plan["step"]["band"].get<double>()),
          plan["checkpoint"]["save_s"].get<double>(), a.value("--hardware")};
}

/// How long before its end a job must begin to stop: two steps and two saves, and Slurm's own inaccuracy.
void set_lead(JobScript& job, const std::string& given, const std::string& run, const PlannedTimes& planned) {
  const std::int64_t time = seconds_of_time(job.time);
  const auto status = run.empty() ? std::nullopt : RunStatus::read(run);
  if (!given.empty()) {
    job.lead_s = whole_number(kCommand, "--lead", given, 1);
    job.lead_note = fmt::format("the signal comes {} s before the end, as --lead says.", job.lead_s);
  } else if (status && status->save_s > 0) {
    job.lead_s = kSlurmLate + static_cast<int>(std::ceil(2 * (status->step_s + status->save_s)));
    job.lead_note = fmt::format(
        "the signal comes {} s before the end: two steps of {:.1f} s and two saves of {:.1f} s, as {} "
        "measured, and a minute.",
        job.lead_s, status->step_s, status->save_s, run);
  } else if (!planned.hardware.empty()) {
    job.lead_s = kSlurmLate + static_cast<int>(std::ceil(2 * (planned.step_s + planned.save_s)));
    job.lead_note = fmt::format(
        "the signal comes {} s before the end: two steps of {:.1f} s and two saves of {:.1f} s, as planned for {}, and "
        "a minute.",
        job.lead_s, planned.step_s, planned.save_s, planned.hardware);
  } else {
    job.lead_s = static_cast<int>(std::min<std::int64_t>(kUnmeasured, time / 2));
    job.lead_note = fmt::format("the signal comes {} s before the end: no run has measured a save yet.", job.lead_s);
  }
  require<UsageError>(job.lead_s < time,
                      "{}: --time={} is {} s, but the job needs the last {} s to save: give it more time{}", kCommand,
                      job.time, time, job.lead_s, given.empty() ? "" : ", or a smaller --lead");
}

/// What sbatch says goes to the terminal.
int submit(const std::string& script) {
  require<UsageError>(is_on_path("sbatch"),
                      "{}: --submit needs sbatch, which is not here: write the script with "
                      "--output=FILE, and sbatch it where Slurm is",
                      kCommand);
  std::fflush(stdout);
  FILE* const pipe = ::popen("sbatch", "w");
  require(pipe != nullptr, "cannot start sbatch: {}", std::strerror(errno));
  const bool whole = std::fwrite(script.data(), 1, script.size(), pipe) == script.size();
  const int code = ::pclose(pipe);
  require(whole && code == 0, "sbatch did not take the script{}", whole ? "" : ": it stopped reading");
  return kDone;
}

/// The recipe of an element, checked on its ranks; its run's directory.
std::string check_point(const std::vector<std::string>& words, JobScript& job, int ranks) {
  const Arguments a = parse_args(
      words, {.command = kCommand,
              .flags = {"--force", "--repeat-rounding"},
              .options = {"--trace", "--record-pools", "--profile-steps", "--seeds", "--cells", "--chance-draws"},
              .lists = {"--set", "--tune"},
              .overrides = true,
              .min_positional = 1,
              .max_positional = 1,
              .positional = "RECIPE.ini"});
  const Recipe recipe = load_recipe(a.positional[0], a.overrides);
  recipe.validate(ranks);
  job.threads = std::max(job.threads, recipe.train.threads);
  job.gpus = job.gpus || recipe.run.device != DeviceKind::Cpu;
  if (job.name.empty()) job.name = recipe.run.name;
  return (std::filesystem::path(job.directory) / recipe.run.dir).string();
}

}  // namespace

int run_slurm(const std::vector<std::string>& args) {
  // What the job's command takes goes to it as it is.
  const Arguments a =
      parse_args(args, {.command = kCommand,
                        .flags = {"--submit", "--force", "--repeat-rounding", "--json", "--modularity"},
                        .options = {"--nodes", "--time", "--ranks-per-node", "--array", "--output", "--site", "--lead",
                                    "--hardware", "--command", "--job-name", "--trace", "--record-pools",
                                    "--profile-steps", "--seeds", "--cells", "--chance-draws", "--experts", "--keep"},
                        .lists = {"--set", "--tune"},
                        .overrides = true,
                        .min_positional = 0,
                        .max_positional = 1,
                        .positional = "RECIPE.ini"});
  for (const char* needed : {"--nodes", "--time"})
    require<UsageError>(a.has(needed), "{}: {} is missing: write {} --nodes=N --time=H:MM:SS RECIPE.ini", kCommand,
                        needed, kCommand);
  require<UsageError>(a.positional.empty() == a.has("--array"),
                      "{}: name a recipe, or with --array=FILE a file with one a line: {}", kCommand,
                      a.positional.empty() ? "there is neither" : "there are both");
  JobScript job;
  job.kind = parse_kind(a.value("--command", "train"));
  job.nodes = whole_number(kCommand, "--nodes", a.value("--nodes"), 1);
  job.ranks_per_node = whole_number(kCommand, "--ranks-per-node", a.value("--ranks-per-node", "1"), 1);
  job.time = a.value("--time");
  job.directory = std::filesystem::current_path().string();
  job.name = a.value("--job-name");
  if (a.has("--array")) {
    job.arguments = read_points(a.value("--array"));
    for (auto& words : job.arguments) words.insert(words.end(), a.overrides.begin(), a.overrides.end());
  } else {
    std::vector<std::string> words = a.positional;
    words.insert(words.end(), a.overrides.begin(), a.overrides.end());
    for (const auto& [name, value] : a.options) {
      constexpr std::string_view kOwn[] = {"--submit",   "--nodes",   "--time",    "--ranks-per-node",
                                           "--array",    "--output",  "--site",    "--lead",
                                           "--hardware", "--command", "--job-name"};
      if (std::find(std::begin(kOwn), std::end(kOwn), name) != std::end(kOwn)) continue;
      words.push_back(value.empty() ? name : name + "=" + value);
    }
    for (const auto& [name, values] : a.lists)
      for (const std::string& value : values) words.push_back(name + "=" + value);
    job.arguments.push_back(std::move(words));
  }
  const Site site = read_site(find_site(a.value("--site")));
  std::string run;
  if (job.kind == JobKind::Eval) {
    if (job.name.empty()) job.name = "emox-eval";
  } else if (!a.has("--array")) {
    run = check_point(job.arguments.front(), job, job.nodes * job.ranks_per_node);
  } else {
    // One that is wrong fails by itself, and says so in its log: the others are not its fault.
    for (std::size_t i = 0; i < job.arguments.size(); ++i) {
      try {
        check_point(job.arguments[i], job, job.nodes * job.ranks_per_node);
      } catch (const UsageError& e) {
        std::fputs(fmt::format("emox slurm: warning: element {} of --array will fail: {}\n", i, e.message()).c_str(),
                   stderr);
      }
    }
    if (!a.has("--job-name")) job.name = std::filesystem::path(a.value("--array")).stem().string();
  }
  set_lead(job, a.value("--lead"), run, planned_times(a, job));
  const std::string script = job_script(job, site);
  if (a.has("--output")) write_file_atomically(a.value("--output"), script);
  if (a.has("--submit")) return submit(script);
  if (!a.has("--output")) std::fputs(script.c_str(), stdout);
  return kDone;
}

}  // namespace emox
