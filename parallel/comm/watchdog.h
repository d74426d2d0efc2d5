// Ends a job that hangs, and says why. One watchdog a rank: it times the collective that this rank is inside of, and
// nothing else, so that computing never ends a job, however long it takes. When a collective lasts longer than the
// limit, the watchdog asks the other ranks of that communicator how far they are, prints a report, ends the job.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "parallel/comm/activity.h"
#include "parallel/comm/communicator.h"

namespace emox {

/// How a watchdog reaches the others: by messages (mpi) or by looking (threads). Called by the watchdog's thread only.
class WatchdogPeers {
 public:
  virtual ~WatchdogPeers() = default;
  /// Answers the questions that have come in. Called a few times a second.
  virtual void answer() = 0;
  /// What each of these ranks says about the communicator; nothing from a rank that stays silent for `wait_s`.
  virtual std::vector<std::optional<RankStatus>> ask(const std::vector<int>& ranks, std::uint64_t comm_id,
                                                     double wait_s) = 0;
  virtual void end_job(const std::string& report) = 0;
};

class Watchdog {
 public:
  /// `log` and `peers` must outlive the watchdog.
  Watchdog(int rank, double limit_s, ActivityLog& log, WatchdogPeers& peers);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;
  /// Ends the thread; no job is ended after this returns. Safe to call twice.
  void stop() noexcept;

 private:
  void run() noexcept;
  void look();
  bool left_to_another(const Overdue& late, const std::vector<std::optional<RankStatus>>& replies) const;

  int rank_;
  double limit_;
  ActivityLog& log_;
  WatchdogPeers& peers_;
  bool fired_ = false;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  std::thread thread_;  // last: it uses everything above
};

/// The text of a report: which collective, for how long, and what the ranks that have not arrived say.
std::string watchdog_report(int rank, double limit_s, const Overdue& late,
                            const std::vector<std::optional<RankStatus>>& replies);

/// `inner`, with every collective noted in `log`; so are the communicators split from it. `log` must outlive them all.
std::unique_ptr<Communicator> make_watched(std::unique_ptr<Communicator> inner, ActivityLog& log,
                                           std::string name = "world");

}  // namespace emox
