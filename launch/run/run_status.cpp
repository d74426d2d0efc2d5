#include "launch/run/run_status.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "launch/run/job_facts.h"
#include "launch/run/lease_holder.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/files/atomic_file.h"
#include "runtime/files/files.h"
#include "runtime/telemetry/json_text.h"

namespace emox {
namespace {
constexpr const char* kName = "status.json";
constexpr std::chrono::seconds kRefresh{10};  // a file that is written and synced
}  // namespace

nlohmann::ordered_json RunStatus::to_json() const {
  const auto seconds = [](double s) { return s > 0 ? nlohmann::ordered_json(s) : nlohmann::ordered_json(); };
  return {{"state", kRunStateNames[idx(state)]},
          {"step", step},
          {"steps", steps},
          {"saved_step", saved_step},
          {"reason", reason},
          {"signal", signal},
          {"for_good", for_good},
          {"job", job},
          {"restarts", restarts},
          {"host", host},
          {"pid", pid},
          {"started", started},
          {"updated", updated},
          {"step_s", seconds(step_s)},
          {"save_s", seconds(save_s)}};
}

std::optional<RunStatus> RunStatus::from_text(const std::string& text) {
  try {
    const auto j = nlohmann::json::parse(text);
    RunStatus s;
    const std::string name = j.at("state").get<std::string>();
    const auto* const found = std::find(std::begin(kRunStateNames), std::end(kRunStateNames), name);
    if (found == std::end(kRunStateNames)) return std::nullopt;
    s.state = static_cast<RunState>(found - std::begin(kRunStateNames));
    for (const auto& [key, value] :
         {std::pair("step", &s.step), {"steps", &s.steps}, {"saved_step", &s.saved_step}, {"pid", &s.pid}})
      *value = j.at(key).get<std::int64_t>();
    for (const auto& [key, value] : {std::pair("reason", &s.reason),
                                     {"signal", &s.signal},
                                     {"job", &s.job},
                                     {"host", &s.host},
                                     {"started", &s.started},
                                     {"updated", &s.updated}})
      *value = j.at(key).get<std::string>();
    s.for_good = j.at("for_good").get<bool>();
    s.restarts = j.at("restarts").get<int>();
    for (const auto& [key, value] : {std::pair("step_s", &s.step_s), {"save_s", &s.save_s}})
      *value = j.at(key).is_null() ? 0.0 : j.at(key).get<double>();
    return s;
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;
  }
}

std::optional<RunStatus> RunStatus::read(const std::filesystem::path& directory) {
  const TextOrError text = try_read_text(directory / kName);
  return text.error == 0 ? from_text(text.text) : std::nullopt;
}

StatusFile::StatusFile(const std::filesystem::path& directory, int rank, Log& log)
    : path_(directory / kName), rank_(rank), log_(log) {
  char host[256] = "unknown";
  gethostname(host, sizeof host - 1);
  status.host = host;
  status.pid = getpid();
  status.job = slurm_job();
  status.restarts = restarts_so_far();
  status.started = utc_now();
  if (const auto before = rank == 0 ? RunStatus::read(directory) : std::nullopt) status.save_s = before->save_s;
}

void StatusFile::write() {
  written_ = std::chrono::steady_clock::now();
  status.updated = utc_now();
  // Ranks may fail at the same time: each writes a file of its own, and the last name counts.
  std::filesystem::path own = path_;
  if (rank_ != 0) own += fmt::format(".rank-{}", rank_);
  try {
    write_file_atomically(own, json_text(status.to_json(), 2) + "\n");
    if (rank_ != 0) std::filesystem::rename(own, path_);
  } catch (const std::exception& e) {
    if (!std::exchange(said_, true))
      log_.warn("{} does not say how this run is: {}; training goes on", path_.string(), e.what());
  }
}

void StatusFile::refresh() {
  if (std::chrono::steady_clock::now() - written_ >= kRefresh) write();
}

void StatusFile::failed(const std::string& error) {
  if (rank_ != 0) {
    const auto there = RunStatus::read(path_.parent_path());
    if (!there || there->state != RunState::Running) return;
    status = *there;
  }
  status.state = RunState::Failed;
  status.reason = error;
  write();
}

}  // namespace emox
