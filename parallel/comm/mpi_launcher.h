// Who started this process, and as one of how many: from what launchers leave in the environment.
#pragma once

#include <string>

#include "runtime/core/error.h"

namespace emox {

/// The launcher and MPI disagree: the same on all ranks that were launched, so that one of them says it.
struct LaunchError : UsageError {
  using UsageError::UsageError;
};

struct Launcher {
  std::string name;      ///< "mpirun", "srun", "a PMI launcher"; empty: nobody launched ranks
  std::string variable;  ///< "SLURM_STEP_NUM_TASKS = 4", from which the number is known
  int ranks = 1;         ///< that it says it started
  int rank = 0;          ///< of this process among them, as far as it is said
};

/// "Open MPI v4.1.4"; MPI need not have been started.
std::string mpi_library();

/// A job script is no launch: SLURM_NTASKS is set there, too, so that only a task of a step counts.
Launcher find_launcher();

/// LaunchError, in three lines, when no MPI of these ranks can come about: srun's tasks without a PMIx server,
/// which this MPI library answers with two pages, or with as many jobs of one rank. Before MPI is started.
void check_before_mpi(const Launcher& launcher);
/// LaunchError when MPI sees fewer ranks than were launched: several jobs would do the whole work, in one directory.
void check_world(const Launcher& launcher, int world);
/// Tasks of the Slurm job around this process, which nobody has started on them: a job script without srun. Else 1.
int tasks_without_launcher();

}  // namespace emox
