#include "parallel/comm/watchdog.h"

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "runtime/core/error.h"

namespace emox {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kAnswerWait = 3.0;   // a rank that lives answers within a few polls
constexpr double kGrace = 5.0;        // how long a rank leaves the report to a lower one
constexpr double kLongestTick = 1.0;  // longer gaps mean that this process was stopped, which is no hang
constexpr int kMostLines = 24;

std::string describe(const Activity& a) {
  return fmt::format("{} #{} on {} ({} bytes)", a.op, a.sequence, a.comm, a.bytes);
}

std::string describe_missing(int rank, const RankStatus& s) {
  const std::string head = fmt::format("  rank {} has not arrived: ", rank);
  if (s.latest.sequence == 0) return head + "it has entered no collective yet\n";
  if (s.latest.inside != 0)
    return head + fmt::format("it has been in {} for {:.1f} s\n", describe(s.latest), s.latest.seconds);
  return head + fmt::format("it finished {} {:.1f} s ago and is outside any collective\n", describe(s.latest),
                            s.latest.seconds);
}

/// One line about a rank that is not simply waiting in the same call; empty for one that is.
std::string describe_peer(int rank, const Activity& mine, const std::optional<RankStatus>& reply) {
  if (!reply) return fmt::format("  rank {} does not answer: stopped, swapped out or cut off\n", rank);
  const Activity& theirs = reply->asked;
  if (theirs.sequence < mine.sequence) return describe_missing(rank, *reply);
  if (theirs.sequence > mine.sequence || theirs.inside == 0)
    return fmt::format("  rank {} has finished this call, its last one here is {}\n", rank, describe(theirs));
  if (std::string_view(theirs.op) != mine.op)
    return fmt::format("  rank {} makes another call: {}, for {:.1f} s\n", rank, describe(theirs), theirs.seconds);
  return {};
}

}  // namespace

std::string watchdog_report(int rank, double limit_s, const Overdue& late,
                            const std::vector<std::optional<RankStatus>>& replies) {
  std::string waiting;
  std::string lines;
  int arrived = 0;
  int written = 0;
  for (std::size_t i = 0; i < replies.size(); ++i) {
    const int peer = late.members[i];
    const std::string line = peer == rank ? "" : describe_peer(peer, late.call, replies[i]);
    if (line.empty()) {
      waiting += fmt::format(" {}", peer);
      ++arrived;
    } else if (++written <= kMostLines) {
      lines += line;
    }
  }
  if (written > kMostLines) lines += fmt::format("  and {} more\n", written - kMostLines);
  if (written == 0) lines = "  every rank has arrived: the network stalls, or the ranks' sizes differ\n";
  return fmt::format(
      "watchdog: {} has not finished on rank {} after {:.1f} s (parallel.watchdog_s = {:g})\n"
      "  arrived: {} of {} ranks:{}\n{}",
      describe(late.call), rank, late.call.seconds, limit_s, arrived, replies.size(), waiting, lines);
}

Watchdog::Watchdog(int rank, double limit_s, ActivityLog& log, WatchdogPeers& peers)
    : rank_(rank), limit_(limit_s), log_(log), peers_(peers) {
  require<UsageError>(limit_s > 0,
                      "parallel.watchdog_s = {} starts no watchdog: use a positive number of seconds, or 0 for none",
                      limit_s);
  thread_ = std::thread([this] { run(); });
}

Watchdog::~Watchdog() { stop(); }

void Watchdog::stop() noexcept {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Watchdog::run() noexcept {
  try {
    set_error_rank(rank_);
    const std::chrono::duration<double> tick(std::min(0.2, limit_ / 5));
    auto before = Clock::now();
    std::unique_lock lock(mutex_);
    while (!wake_.wait_for(lock, tick, [this] { return stopping_; })) {
      lock.unlock();
      const auto now = Clock::now();
      log_.advance(std::min(kLongestTick, std::chrono::duration<double>(now - before).count()));
      before = now;
      look();
      lock.lock();
    }
  } catch (const std::exception& e) {
    // Losing the watchdog must not lose the job.
    std::fprintf(stderr, "watchdog of rank %d has stopped watching: %s\n", rank_, e.what());
  }
}

void Watchdog::look() {
  peers_.answer();
  if (fired_) return;
  const std::optional<Overdue> late = log_.overdue(limit_);
  if (!late) return;
  const auto replies = peers_.ask(late->members, late->comm_id, kAnswerWait);
  // While the others were asked the call may have come to its end after all.
  if (!log_.still_inside(*late) || left_to_another(*late, replies)) return;
  fired_ = true;
  const std::string report = watchdog_report(rank_, limit_, *late, replies);
  std::fputs(report.c_str(), stderr);
  std::fflush(stderr);
  peers_.end_job(report);
}

bool Watchdog::left_to_another(const Overdue& late, const std::vector<std::optional<RankStatus>>& replies) const {
  // One report is enough: the lowest rank that waits in the same call writes it.
  if (late.call.seconds > limit_ + kGrace) return false;
  for (std::size_t i = 0; i < replies.size(); ++i) {
    if (late.members[i] >= rank_ || !replies[i]) continue;
    const Activity& theirs = replies[i]->asked;
    if (theirs.inside != 0 && theirs.sequence == late.call.sequence) return true;
  }
  return false;
}

}  // namespace emox
