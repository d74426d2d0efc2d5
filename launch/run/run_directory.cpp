#include "launch/run/run_directory.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <string_view>
#include <utility>

#include "launch/config/recipe_file.h"
#include "launch/run/job_facts.h"
#include "launch/run/lease_holder.h"
#include "parallel/checkpoint/layout.h"
#include "parallel/comm/together.h"
#include "runtime/core/error.h"
#include "runtime/core/version.h"
#include "runtime/cpu/processor.h"
#include "runtime/files/atomic_file.h"
#include "runtime/files/files.h"
#include "runtime/telemetry/history.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

std::string read_own(const fs::path& path) {
  TextOrError read = try_read_text(path);
  require<IoError>(read.error == 0, "cannot read {}: {}; make it readable, or move it away", path.string(),
                   std::strerror(read.error));
  return std::move(read.text);
}

/// `facts`: job_facts().
nlohmann::ordered_json describe_run(Session& session, const RunStart& start, const std::vector<std::string>& command,
                                    const nlohmann::ordered_json& facts) {
  char host[256] = "unknown";
  gethostname(host, sizeof host - 1);
  nlohmann::ordered_json job = {{"emox", kVersion},
                                {"command", command},
                                {"started", utc_now()},
                                {"host", host},
                                {"processor", processor_name()},
                                {"device", device_name(session.ctx())},
                                {"precision", name_of(session.ctx().activations)},
                                {"instructions", cpu::compiled_instructions()},
                                {"compiler", __VERSION__},
                                {"ranks", session.comm().size()},
                                {"ranks_per_node", session.comm().node_size()},
                                {"transport", std::string(session.comm().transport())},
                                {"threads_per_rank", session.ctx().threads},
                                {"from_step", start.step},
                                {"changes", start.changes},
                                {"recipe", to_json(start.recipe)},
                                {"data", start.identity}};
  job.update(facts);
  return job;
}

}  // namespace

fs::path RunDirectory::log(int rank) const { return root_ / "log" / fmt::format("rank-{:05}.txt", rank); }

bool RunDirectory::has_checkpoints() const { return !list_checkpoints(checkpoints()).empty(); }

std::optional<nlohmann::json> RunDirectory::evaluation_after(std::int64_t step) const {
  std::ifstream in(evaluations());
  for (std::string line; std::getline(in, line) && !in.eof();) {  // a line without its end is torn
    nlohmann::json record = nlohmann::json::parse(line, nullptr, false);
    if (record.is_object() && record.contains("step") && record["step"] == step) return record;
  }
  return std::nullopt;
}

void RunDirectory::check_is_run(const char* mark) const {
  std::error_code error;
  const fs::file_status status = fs::status(root_, error);
  if (status.type() == fs::file_type::not_found) return;
  require<UsageError>(fs::is_directory(status),
                      "the run directory {} is no directory: choose another with --run.dir=DIR", root_.string());
  if (fs::exists(root_ / mark, error) || has_checkpoints()) return;
  // What a job leaves that ended before it had written run.json, and what people keep in empty directories.
  constexpr std::string_view kOwn[] = {"checkpoints", "log",         "run.json.tmp",   "recipe.ini.tmp",
                                       "STOP",        "status.json", "slurm-restarts", ".gitignore",
                                       ".gitkeep",    "lost+found"};
  std::vector<std::string> others;
  for (const auto& entry : fs::directory_iterator(root_)) {
    const std::string name = entry.path().filename().string();
    const bool own = std::find(std::begin(kOwn), std::end(kOwn), name) != std::end(kOwn) ||
                     name.starts_with("lease.json") || name.starts_with(".nfs");
    if (!own) others.push_back(name);
  }
  if (others.empty()) return;
  std::sort(others.begin(), others.end());
  const std::size_t shown = std::min<std::size_t>(others.size(), 5);
  fail<UsageError>(
      "the directory {} is not a run of emox (it has no {} and no checkpoints), but holds {}{}: emox writes no "
      "run between other files. Choose an empty directory, for example --run.dir={}, or move those files away",
      root_.string(), mark, fmt::join(others.begin(), others.begin() + static_cast<std::ptrdiff_t>(shown), ", "),
      others.size() > shown ? ", ..." : "", (root_ / "run").string());
}

nlohmann::ordered_json RunDirectory::jobs() const {
  if (!fs::exists(manifest())) return nlohmann::ordered_json::array();
  return nlohmann::ordered_json::parse(read_own(manifest()), nullptr, false);
}

std::vector<std::string> RunDirectory::outputs_of(const std::string& option) const {
  std::vector<std::string> files;
  const nlohmann::ordered_json all = jobs();
  if (all.is_array())
    for (const auto& job : all)
      if (job.is_object() && job.contains("outputs") && job["outputs"].is_object())
        if (const auto file = job["outputs"].find(option); file != job["outputs"].end() && file->is_string())
          files.push_back(file->get<std::string>());
  return files;
}

void RunDirectory::write_recipe(const Recipe& recipe_now, std::vector<std::string>& notes) const {
  const std::string text = to_ini(recipe_now, true);
  if (fs::exists(fs::symlink_status(recipe()))) {
    const std::string before = read_own(recipe());
    std::optional<Recipe> parsed;
    try {
      parsed = parse_recipe(before, recipe().string());
    } catch (const UsageError&) {  // of another version, or not one at all
    }
    if (parsed && to_ini(*parsed) == to_ini(recipe_now)) return;
    if (!parsed || to_ini(*parsed, true) != before)
      notes.push_back(fmt::format("{} says other things than this run, and emox did not write it so: it is kept as {}",
                                  recipe().string(), move_aside(recipe()).string()));
  }
  write_file_atomically(recipe(), text);
}

void RunDirectory::add_job(nlohmann::ordered_json job, std::vector<std::string>& notes) const {
  nlohmann::ordered_json all = jobs();
  if (!all.is_array()) {
    notes.push_back(fmt::format("{} cannot be understood and begins anew; it is kept as {}", manifest().string(),
                                move_aside(manifest()).string()));
    all = nlohmann::ordered_json::array();
  }
  all.push_back(std::move(job));
  // Commands and host names may hold any bytes.
  write_file_atomically(manifest(), all.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

void RunDirectory::settle_histories(std::int64_t step, std::vector<std::string>& notes) const {
  for (const fs::path& file : {metrics(), evaluations()}) {
    const SetAside moved = settle_history(file.string(), step);
    if (moved.file.empty()) continue;
    notes.push_back(fmt::format("{}: {} record(s) of steps after {}, and {} line(s) that cannot be read, are now in {}",
                                file.string(), moved.later, step, moved.unreadable, moved.file));
  }
}

void RunDirectory::prepare(Session& session, const RunStart& start, const std::vector<std::string>& command,
                           const std::map<std::string, std::string>& outputs) const {
  std::vector<std::string> notes;
  const nlohmann::ordered_json facts = job_facts(session.comm());
  on_root(session.comm(), [&] {
    std::error_code error;
    for (const char* folder : {"checkpoints", "log"}) {
      fs::create_directories(root_ / folder, error);
      require<UsageError>(!error, "cannot make the run directory {}: {}; choose another with --run.dir=DIR",
                          (root_ / folder).string(), error.message());
    }
    nlohmann::ordered_json job = describe_run(session, start, command, facts);
    for (const auto& [option, file] : outputs)
      if (!file.empty()) job["outputs"][option] = fs::absolute(file).lexically_normal().string();
    settle_histories(start.step, notes);
    add_job(std::move(job), notes);  // first: it tells this directory from other people's
    write_recipe(start.recipe, notes);
  });
  session.log().open_file(log(session.comm().rank()).string());
  for (const std::string& note : notes) session.log().warn("{}", note);
}

void require_outside_checkpoints(const std::string& command, const fs::path& output) {
  std::error_code none;
  const fs::path directory = fs::weakly_canonical(fs::absolute(output), none).parent_path();
  require<UsageError>(!fs::exists(directory / "manifest.json", none),
                      "{}: --output={} lies in the checkpoint {}: name a file elsewhere", command, output.string(),
                      directory.string());
}

}  // namespace emox
