// Ends a job that hangs, and says why. One watchdog a rank: it times the collective that this rank is inside of, and
// nothing else, so that computing never ends a job, however long it takes. When a collective lasts longer than the
// limit, the watchdog asks the other ranks how far they are. Where those that are missing say that they are at work
// (progress.h) it waits on; otherwise it prints a report and ends the job. It also asks communicators whose calls run
// on a device why they cannot end (CollectiveObserver::probe): an answer that stays ends the job.
#pragma once

#include <chrono>
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
  /// Of the world.
  virtual int ranks() const = 0;
  virtual void end_job(const std::string& report) = 0;
};

/// In seconds.
struct WatchdogLimits {
  double collective = 0;  ///< how long a call may last, and how old a missing rank's last report of progress may be
  double io = 0;          ///< how old the last sign of life of a rank in an IoPhase may be, where longer
};

/// Whether the status is that of a rank which works and says so often enough; others may wait for it.
bool is_at_work(const RankStatus& status, const WatchdogLimits& limits);

class Watchdog {
 public:
  /// `log` and `peers` must outlive the watchdog.
  Watchdog(int rank, WatchdogLimits limits, ActivityLog& log, WatchdogPeers& peers);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;
  /// Ends the thread; no job is ended after this returns. Safe to call twice.
  void stop() noexcept;

 private:
  void run() noexcept;
  void look();
  /// Nothing is wrong but that ranks are slow.
  bool may_go_on(const Overdue& late, const std::vector<std::optional<RankStatus>>& replies);
  bool lower_rank_waits(const Overdue& late, const std::vector<std::optional<RankStatus>>& replies) const;
  void end_job(const std::string& report);

  using Clock = std::chrono::steady_clock;
  /// What is known of the call that is overdue.
  struct Case {
    std::uint64_t comm_id = 0;
    std::int64_t sequence = 0;
    Clock::time_point ask_at{};                                   ///< not before
    std::optional<Clock::time_point> stuck_since = std::nullopt;  ///< since nothing excuses them
    int silent = 0;                                               ///< how often in a row some rank did not answer
    bool told = false;                                            ///< that it waits for slow ranks
  };

  int rank_;
  WatchdogLimits limits_;
  ActivityLog& log_;
  WatchdogPeers& peers_;
  bool fired_ = false;
  std::optional<Clock::time_point> trouble_since_;
  Case case_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  std::thread thread_;  // last: it uses everything above
};

/// The text of a report: which collective, for how long, and what the ranks that have not arrived say.
std::string watchdog_report(int rank, double limit_s, const Overdue& late,
                            const std::vector<std::optional<RankStatus>>& replies);

/// Every collective of `comm`, whose ranks are the world's, is noted in `log`; so are those of communicators split from
/// it. `log` must outlive them all.
void watch(Communicator& comm, ActivityLog& log, std::string name = "world");

}  // namespace emox
