// Waiting for a run directory: a job that was killed keeps it for a minute on other hosts (lease.h), and a restart that
// ended for that would be a failed job.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "launch/run/lease.h"

namespace emox {

struct LeaseWait {
  double seconds = 0;                                ///< 0: not at all
  std::function<void(const std::string&)> say = {};  ///< once: who has it
  std::function<bool()> go_on = {};  ///< asked a few times a second; false: waiting ends, as if the time were over
};

/// As RunLease's constructor, but a directory that another job has is asked for again until the time is over; then the
/// TryAgainError says how long it was waited for.
std::unique_ptr<RunLease> take_lease_within(const LeaseWait& wait, const std::filesystem::path& directory,
                                            const std::vector<std::string>& command, LeaseTiming timing);

}  // namespace emox
