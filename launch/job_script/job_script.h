// A Slurm job script from slurm/job.sh and what a site decides: the job saves before its time is over and goes on by
// itself.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launch/job_script/site.h"

namespace emox {

enum class JobKind : std::uint8_t { Train, Study, Eval };
inline constexpr const char* kJobKindNames[] = {"train", "study", "eval"};

struct JobScript {
  JobKind kind = JobKind::Train;
  std::string name;                                 ///< of the job
  std::vector<std::vector<std::string>> arguments;  ///< of `emox KIND`, of each element; one: no array
  std::string time;                                 ///< as Slurm takes it
  int nodes = 1, ranks_per_node = 1;
  std::int64_t threads = 0;  ///< cores of a rank; 0: the site's or Slurm's default
  bool gpus = false;         ///< with the site's EMOX_GPUS
  std::string directory;     ///< where the job runs, absolute
  int lead_s = 0;            ///< how long before the end the signal is to come
  std::string lead_note;     ///< where that is from
};

/// "90", "1:30:00", "2-12" and so on, in seconds; UsageError for what sbatch would not take, and for no limit at all.
std::int64_t seconds_of_time(const std::string& text);
/// A word for bash.
std::string shell_quoted(const std::string& word);
/// The lines of a file of arguments, one element each, divided as a shell divides words: blanks, quotes, # for remarks.
/// UsageError naming file and line for a quote that does not end, and for a file without any.
std::vector<std::vector<std::string>> read_points(const std::string& file);
std::string job_script(const JobScript& job, const Site& site);

}  // namespace emox
