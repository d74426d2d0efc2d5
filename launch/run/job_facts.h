// Where and as what a job runs: what the scheduler says of it, its nodes, the cores of each rank, the environment that
// decides how ranks talk to each other, and the libraries.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "parallel/comm/communicator.h"

namespace emox {

/// The commit that the program was made from ("4b5fe39fb0", with a + where files had been changed); "" where that is
/// not known. main() sets it.
void set_git_version(std::string commit);
/// "26_1" for an element of an array, "26", or "" outside of Slurm: what scontrol calls this job. SLURM_JOB_ID alone
/// may be the whole array's.
std::string slurm_job();
/// How often this job was started again: EMOX_RESTARTS, else SLURM_RESTART_COUNT, else 0.
int restarts_so_far();
/// Variables that decide how a job runs: those of NCCL, Open MPI, OpenMP and Slurm, without any whose name says that it
/// is a secret. Object of name and value.
nlohmann::ordered_json job_environment();
/// Collective. {job, restarts, nodes: [{host, ranks, cores: [a list for each]}], environment, git, libraries}; on rank
/// 0, null elsewhere.
nlohmann::ordered_json job_facts(Communicator& comm);

}  // namespace emox
