#include "launch/analysis/runs/run_history.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "launch/config/recipe_file.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/files/files.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

double number_of(const nlohmann::json& j, const char* key) {
  const auto found = j.find(key);
  return found != j.end() && found->is_number() ? found->get<double>() : std::numeric_limits<double>::quiet_NaN();
}
std::int64_t count_of(const nlohmann::json& j, const char* key, std::int64_t otherwise) {
  const auto found = j.find(key);
  return found != j.end() && found->is_number_integer() ? found->get<std::int64_t>() : otherwise;
}
std::string text_of(const nlohmann::json& j, const char* key) {
  const auto found = j.find(key);
  return found != j.end() && found->is_string() ? found->get<std::string>() : "";
}

/// Every line that is an object with a step; how many are not.
std::int64_t each_record(const fs::path& file, const std::function<void(const nlohmann::json&)>& take) {
  std::istringstream in(try_read_text(file).text);
  std::int64_t unreadable = 0;
  for (std::string line; std::getline(in, line);) {
    const nlohmann::json record = nlohmann::json::parse(line, nullptr, false);
    if (record.is_object() && count_of(record, "step", -1) >= 0)
      take(record);
    else if (!line.empty())
      ++unreadable;
  }
  return unreadable;
}

StepRecord step_of(const nlohmann::json& j) {
  StepRecord s;
  s.step = count_of(j, "step", 0), s.tokens = count_of(j, "tokens", 0);
  for (auto& [key, value] : {std::pair<const char*, double*>{"ce", &s.ce},
                             {"step_s", &s.step_s},
                             {"tokens_per_s", &s.tokens_per_s},
                             {"gemm_floor_fraction", &s.gemm_floor_fraction},
                             {"load_max_over_mean", &s.load_max_over_mean},
                             {"rows_sent_per_token", &s.rows_sent_per_token},
                             {"nodes_per_token", &s.nodes_per_token},
                             {"bytes_intra_node", &s.bytes_intra_node},
                             {"bytes_inter_node", &s.bytes_inter_node},
                             {"exposed_comm_s", &s.exposed_comm_s},
                             {"useful_s_min", &s.useful_s_min},
                             {"useful_s_mean", &s.useful_s_mean},
                             {"useful_s_max", &s.useful_s_max}})
    *value = number_of(j, key);
  const nlohmann::json phases = j.value("phase_s", nlohmann::json::object());
  for (std::size_t i = 0; i < kPhases.size(); ++i) s.phase_s[i] = number_of(phases, kPhases[i]);
  return s;
}

JobRecord job_of(const nlohmann::json& j, std::size_t changes_before) {
  JobRecord r;
  r.started = text_of(j, "started"), r.host = text_of(j, "host"), r.processor = text_of(j, "processor");
  r.device = text_of(j, "device"), r.precision = text_of(j, "precision");
  r.ranks = static_cast<int>(count_of(j, "ranks", 1));
  r.ranks_per_node = static_cast<int>(count_of(j, "ranks_per_node", r.ranks));
  r.threads = static_cast<int>(count_of(j, "threads_per_rank", 1));
  r.from_step = count_of(j, "from_step", 0);
  const nlohmann::json changes = j.value("changes", nlohmann::json::array());
  for (std::size_t i = changes_before; changes.is_array() && i < changes.size(); ++i)
    if (changes[i].is_object())
      r.changes.push_back(text_of(changes[i], "key") + ": " + changes[i].value("old", nlohmann::json()).dump() +
                          " -> " + changes[i].value("new", nlohmann::json()).dump());
  return r;
}

}  // namespace

RunHistory read_history(const fs::path& directory) {
  std::error_code none;
  require<UsageError>(fs::is_directory(directory, none), "{} is no directory: name the directory of a run",
                      directory.string());
  RunHistory h;
  h.directory = directory;
  const TextOrError recipe = try_read_text(directory / "recipe.ini");
  require<UsageError>(recipe.error == 0, "{} is no run of emox: it has no recipe.ini that can be read",
                      directory.string());
  h.recipe = parse_recipe(recipe.text, (directory / "recipe.ini").string());
  const nlohmann::json jobs = nlohmann::json::parse(try_read_text(directory / "run.json").text, nullptr, false);
  std::size_t changes = 0;
  if (jobs.is_array())
    for (const auto& job : jobs)
      if (job.is_object()) {
        h.jobs.push_back(job_of(job, changes));
        if (job.contains("changes") && job["changes"].is_array()) changes = job["changes"].size();
      }
  require<UsageError>(!h.jobs.empty(), "{} is no run of emox: its run.json is missing or cannot be read",
                      directory.string());
  std::map<std::int64_t, StepRecord> steps;  // a step that was done again counts as it was done last
  h.unreadable = each_record(directory / "metrics.jsonl", [&](const nlohmann::json& j) {
    const StepRecord s = step_of(j);
    steps[s.step] = s;
  });
  for (auto& [step, record] : steps) h.steps.push_back(record);
  require<UsageError>(!h.steps.empty(), "{} has no step in its metrics.jsonl: nothing was trained yet",
                      directory.string());
  h.unreadable += each_record(directory / "eval.jsonl", [&](const nlohmann::json& j) {
    const nlohmann::json mean = j.value("mean", nlohmann::json::object());
    h.evaluations.push_back({count_of(j, "step", 0), number_of(mean, "loss"), number_of(mean, "bits_per_byte")});
  });
  return h;
}

}  // namespace emox
