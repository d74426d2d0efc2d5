#include "parallel/comm/mpi_launcher.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <optional>
#include <string_view>

#include "parallel/comm/mpi_support.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

/// A number of at least 0 in the environment.
std::optional<int> number(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr) return std::nullopt;
  const std::string_view s(text);
  int value = 0;
  const auto parsed = std::from_chars(s.data(), s.data() + s.size(), value);
  return parsed.ec == std::errc() && value >= 0 ? std::optional(value) : std::nullopt;
}

bool is_set(const char* name) { return std::getenv(name) != nullptr; }

[[noreturn]] void refuse(const Launcher& l, const std::string& world) {
  std::string cure;
  if (l.name == "srun")
    cure = "start it with srun --mpi=pmix (srun --mpi=list shows what this Slurm has), or with mpirun inside the job";
  else if (l.name == "mpirun")
    cure = "start it with the mpirun of the MPI that it was built with";
  else
    cure = "start it with the mpirun of that MPI, or with a launcher that offers PMIx (srun --mpi=pmix)";
  fail<LaunchError>(
      "{} started {} ranks ({}), but {}: each would do the whole work, in the same directory.\n"
      "  This emox uses {}: {}.\n"
      "  Where one process is meant, start one, or unset the variable",
      l.name, l.ranks, l.variable, world, mpi_library(), cure);
}

}  // namespace

std::string mpi_library() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(text, &length);  // allowed before MPI_Init
  const std::string_view version(text, idx(length));
  return std::string(version.substr(0, version.find_first_of(",\n")));
}

Launcher find_launcher() {
  Launcher l;
  const auto said = [&](const char* name, const char* variable, const char* rank) {
    const int ranks = number(variable).value_or(0);
    if (ranks < 1) return false;
    l = {name, fmt::format("{} = {}", variable, ranks), ranks, number(rank).value_or(0)};
    return true;
  };
  if (said("mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")) return l;
  // Of srun's step, not SLURM_NTASKS: that is also set in the job script, where nobody launched ranks.
  const bool in_task = is_set("SLURM_PROCID") || is_set("PMIX_RANK") || is_set("PMI_RANK");
  if (in_task && said("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")) return l;
  if (said("a PMI launcher", "PMI_SIZE", "PMI_RANK")) return l;
  for (const char* variable : {"PMIX_RANK", "PMI_RANK"})  // how many is not said, but not one
    if (const int rank = number(variable).value_or(0); rank > 0)
      return {"a PMI launcher", fmt::format("{} = {}", variable, rank), rank + 1, rank};
  return l;
}

void check_before_mpi(const Launcher& l) {
#ifdef OPEN_MPI
  // OMPI_MCA_pmix names another way of its own, for an Open MPI that was built with Slurm's PMI-2.
  if (l.name == "srun" && l.ranks > 1 && !is_set("PMIX_NAMESPACE") && !is_set("OMPI_MCA_pmix"))
    refuse(l, "without a PMIx server MPI sees 1 rank");
#else
  (void)l;
#endif
}

void check_world(const Launcher& l, int world) {
  if (world < l.ranks) refuse(l, fmt::format("MPI sees {} rank{}", world, world == 1 ? "" : "s"));
}

int tasks_without_launcher() {
  // Not of a step: there Slurm has started the tasks.
  if (find_launcher().ranks > 1 || is_set("SLURM_STEP_NUM_TASKS") || is_set("OMPI_COMM_WORLD_SIZE")) return 1;
  return is_set("SLURM_JOB_ID") ? number("SLURM_NTASKS").value_or(1) : 1;
}

}  // namespace emox
