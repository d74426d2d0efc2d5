#include "launch/run/job_facts.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>
#include <vector>

#include "parallel/checkpoint/manifest.h"
#include "parallel/comm/mpi_launcher.h"
#include "parallel/comm/nccl/nccl_transport.h"
#include "parallel/comm/together.h"
#include "runtime/core/idx.h"
#include "runtime/cpu/affinity.h"
#include "runtime/cpu/processor.h"

extern char** environ;  // POSIX; no header has to declare it

namespace emox {
namespace {

std::string g_git;

std::string variable(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? "" : text;
}

std::string host_name() {
  char host[256] = "unknown";
  gethostname(host, sizeof host - 1);
  return host;
}

bool is_listed(std::string_view name) {
  constexpr std::string_view kOf[] = {"NCCL_", "OMPI_", "OMP_", "SLURM_"};
  constexpr std::string_view kSecret[] = {"TOKEN", "SECRET", "PASSW", "CREDENTIAL", "KEY", "JWT", "COOKIE"};
  // What mpirun tells its ranks of itself: places, ports and keys, which are others every time.
  constexpr std::string_view kLauncher[] = {"OMPI_MCA_ORTE_", "OMPI_MCA_ESS", "OMPI_FILE_LOCATION", "OMPI_ARGV"};
  std::string upper(name);
  std::transform(upper.begin(), upper.end(), upper.begin(), [](unsigned char c) { return std::toupper(c); });
  const auto holds = [&](std::string_view part) { return upper.find(part) != std::string::npos; };
  return std::any_of(std::begin(kOf), std::end(kOf), [&](std::string_view p) { return name.starts_with(p); }) &&
         std::none_of(std::begin(kSecret), std::end(kSecret), holds) &&
         std::none_of(std::begin(kLauncher), std::end(kLauncher), holds);
}

}  // namespace

void set_git_version(std::string commit) { g_git = std::move(commit); }

std::string slurm_job() {
  const std::string array = variable("SLURM_ARRAY_JOB_ID"), element = variable("SLURM_ARRAY_TASK_ID");
  return array.empty() || element.empty() ? variable("SLURM_JOB_ID") : array + "_" + element;
}

int restarts_so_far() {
  for (const char* name : {"EMOX_RESTARTS", "SLURM_RESTART_COUNT"})
    if (const std::string text = variable(name); !text.empty()) return std::max(std::atoi(text.c_str()), 0);
  return 0;
}

nlohmann::ordered_json job_environment() {
  std::vector<std::string> lines;
  for (char** at = environ; *at != nullptr; ++at) lines.emplace_back(*at);
  std::sort(lines.begin(), lines.end());
  nlohmann::ordered_json found = nlohmann::ordered_json::object();
  for (const std::string& line : lines)
    if (const auto end = line.find('='); end != std::string::npos && is_listed(std::string_view(line).substr(0, end)))
      found[line.substr(0, end)] = line.substr(end + 1);
  return found;
}

nlohmann::ordered_json job_facts(Communicator& comm) {
  const auto of_ranks = gather_texts(comm, host_name() + " " + cpu::list_of(cpu::allowed_cores()));
  if (comm.rank() != 0) return nullptr;
  nlohmann::ordered_json nodes = nlohmann::ordered_json::array();
  for (std::size_t rank = 0; rank < of_ranks.size(); ++rank) {
    const std::string& text = of_ranks[rank];
    const std::string host = text.substr(0, text.rfind(' '));
    // By node, not by name: nodes on one machine may share theirs.
    const auto node = idx(comm.nodes()[rank]);
    while (nodes.size() <= node)
      nodes.push_back({{"host", host}, {"ranks", nlohmann::json::array()}, {"cores", nlohmann::json::array()}});
    nodes[node]["ranks"].push_back(rank);
    nodes[node]["cores"].push_back(text.substr(text.rfind(' ') + 1));
  }
  const std::string nccl = nccl_version();
  return {{"job", slurm_job()},
          {"restarts", restarts_so_far()},
          {"nodes", std::move(nodes)},
          {"environment", job_environment()},
          {"git", g_git.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(g_git)},
          {"libraries",
           {{"mpi", mpi_library()},
            {"hdf5", hdf5_version()},
            {"onednn", cpu::matrix_library()},
            {"nccl", nccl.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(nccl)}}}};
}

}  // namespace emox
