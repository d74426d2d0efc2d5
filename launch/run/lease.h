// A run directory belongs to one job at a time: lease.json in it says to which, and is renewed while the job lives.
//
// Held is a lease
//   by a process of this host, boot and pid namespace: as long as that process exists, even stopped, and no longer;
//   not at all where the lease was made for another directory, of which this one is a copy;
//   by any other: until it has not been renewed for a minute, by the clock of the file system, so that the clocks of
//   hosts need not agree.
// One that is not held is succeeded. Files are created by link(2), which fails where one is already, and a lease is
// replaced only by whoever created lease.json.after-TOKEN, its successor, and found it unchanged after that: however
// many jobs find the same stale lease, one replaces it. A successor that died in between is succeeded in the same way.
// A renewal writes into the file that it has found its own token in: it can never overwrite a later lease.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <string>
#include <thread>

#include "launch/run/lease_holder.h"

namespace emox {

struct LeaseTiming {
  std::chrono::milliseconds renew_every{10'000};
  std::chrono::milliseconds stale_after{60'000};
};

class RunLease {
 public:
  /// Takes the lease of `directory`, which is made if it is not there, for `self`, and renews it from a thread.
  /// TryAgainError that names the holder and what can be done when it is held, by this process, too; UsageError when
  /// the directory cannot be made or written to.
  RunLease(std::filesystem::path directory, LeaseHolder self, LeaseTiming timing = {});
  /// Gives it back, if it is still this one's; a directory that was made for it and is still empty is removed.
  ~RunLease();
  RunLease(const RunLease&) = delete;
  RunLease& operator=(const RunLease&) = delete;

  /// Throws Error when the lease is lost: another job has taken it, or somebody removed it. Looks at the file only when
  /// the last renewal is too long ago (this host was suspended): cheap enough for every step.
  void check();
  /// The same, looking at the file in any case: for what must not happen twice.
  void confirm();

 private:
  void renew_until_told();
  void renew();
  void fail_if_lost() const;

  const std::filesystem::path directory_, file_;
  const LeaseTiming timing_;
  std::mutex mutex_;  ///< of everything below
  LeaseHolder self_;
  std::string lost_;     ///< who has it now; empty: it is ours
  std::string problem_;  ///< why the last renewal failed; empty: it did not
  bool ends_ = false;
  bool made_directory_ = false;
  std::condition_variable end_;
  std::atomic<bool> is_lost_ = false;
  std::atomic<std::chrono::nanoseconds> renewed_;  ///< by the clock that goes on while the host is suspended
  std::thread thread_;
};

}  // namespace emox
