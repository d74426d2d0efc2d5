// What a run directory says of the run: its recipe, jobs, steps and evaluations.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "launch/config/recipe.h"

namespace emox {

inline constexpr std::array<const char*, 7> kPhases = {"forward", "backward",  "dispatch", "combine",
                                                       "reduce",  "optimizer", "data"};

/// A line of metrics.jsonl; NaN for what it does not hold.
struct StepRecord {
  std::int64_t step = 0, tokens = 0;
  double ce = 0, step_s = 0, tokens_per_s = 0, gemm_floor_fraction = 0;
  double load_max_over_mean = 0, rows_sent_per_token = 0, nodes_per_token = 0;
  double bytes_intra_node = 0, bytes_inter_node = 0, exposed_comm_s = 0;
  double useful_s_min = 0, useful_s_mean = 0, useful_s_max = 0;
  std::array<double, kPhases.size()> phase_s{};
};

/// An entry of run.json.
struct JobRecord {
  std::string started, host, processor, device, precision;
  int ranks = 1, ranks_per_node = 1, threads = 1;
  std::int64_t from_step = 0;
  std::vector<std::string> changes;  ///< of this job: "train.batch_sequences: 16 -> 32"
};

struct EvaluationRecord {
  std::int64_t step = 0;
  double loss = 0, bits_per_byte = 0;  ///< mean over domains, held out; NaN where it is not said
};

struct RunHistory {
  std::filesystem::path directory;
  Recipe recipe;
  std::vector<JobRecord> jobs;
  std::vector<StepRecord> steps;  ///< in the order of their numbers
  std::vector<EvaluationRecord> evaluations;
  std::int64_t unreadable = 0;  ///< lines; a job may have ended in the middle of one
  bool finished() const { return !steps.empty() && steps.back().step >= recipe.total_steps(); }
};

/// UsageError for what is no run directory of emox, or has trained no step, and why.
RunHistory read_history(const std::filesystem::path& directory);

}  // namespace emox
