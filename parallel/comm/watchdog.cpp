#include "parallel/comm/watchdog.h"

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "runtime/core/error.h"

namespace emox {
namespace {

constexpr double kAnswerWait = 3.0;    // a rank that lives answers within a few polls
constexpr double kGrace = 5.0;         // how long a rank leaves the report to a lower one
constexpr double kTroubleGrace = 2.0;  // the rank that failed says so itself, where it comes to know
constexpr double kLongestTick = 1.0;   // longer gaps mean that this process was stopped, which is no hang
constexpr int kMostLines = 24;
constexpr int kMostSilent = 2;          // a host under load may miss one question
constexpr double kLongestPause = 30.0;  // between questions to ranks that are slow

double seconds_between(std::chrono::steady_clock::time_point a, std::chrono::steady_clock::time_point b) {
  return std::chrono::duration<double>(b - a).count();
}

std::string describe(const Activity& a) {
  return fmt::format("{} #{} on {} ({} bytes)", a.op, a.sequence, a.comm, a.bytes);
}

std::string describe_missing(int rank, const RankStatus& s) {
  const std::string head = fmt::format("  rank {} has not arrived: ", rank);
  if (s.latest.inside != 0)
    return head + fmt::format("it has been in {} for {:.1f} s\n", describe(s.latest), s.latest.seconds);
  std::string work;
  if (s.io_s >= 0) work += fmt::format("; it is in an I/O phase, without a sign of life for {:.1f} s", s.io_s);
  if (s.progress_s >= 0) work += fmt::format("; it last reported progress {:.1f} s ago", s.progress_s);
  if (s.latest.sequence == 0) return head + "it has entered no collective yet" + work + "\n";
  return head + fmt::format("it finished {} {:.1f} s ago and is outside any collective{}\n", describe(s.latest),
                            s.latest.seconds, work);
}

bool is_missing(const RankStatus& status, const Overdue& late) { return status.asked.sequence < late.call.sequence; }

/// Outside of any collective for longer than others have to wait.
bool is_silent(const RankStatus& s, const WatchdogLimits& limits) {
  return s.latest.inside == 0 && s.latest.seconds >= limits.collective;
}

/// One line about a rank that is not simply waiting in the same call; empty for one that is.
std::string describe_peer(int rank, const Activity& own, const std::optional<RankStatus>& reply) {
  if (!reply) return fmt::format("  rank {} does not answer: stopped, swapped out or cut off\n", rank);
  const Activity& theirs = reply->asked;
  if (theirs.sequence < own.sequence) return describe_missing(rank, *reply);
  if (theirs.sequence > own.sequence || theirs.inside == 0)
    return fmt::format("  rank {} has finished this call, its last one here is {}\n", rank, describe(theirs));
  if (std::string_view(theirs.op) != own.op)
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

bool is_at_work(const RankStatus& s, const WatchdogLimits& limits) {
  // Also a rank that is inside a collective now: others may have waited for it until a moment ago.
  if (s.progress_s >= 0 && s.progress_s < limits.collective) return true;
  return s.latest.inside == 0 && s.io_s >= 0 && s.io_s < std::max(limits.io, limits.collective);
}

Watchdog::Watchdog(int rank, WatchdogLimits limits, ActivityLog& log, WatchdogPeers& peers)
    : rank_(rank), limits_(limits), log_(log), peers_(peers) {
  require<UsageError>(limits.collective > 0,
                      "parallel.watchdog_s = {} starts no watchdog: use a positive number of seconds, or 0 for none",
                      limits.collective);
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
    const std::chrono::duration<double> tick(std::min(0.2, limits_.collective / 5));
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
  limits_.collective = log_.limit_or(limits_.collective);
  if (const std::string trouble = log_.trouble(); trouble.empty()) {
    trouble_since_.reset();
  } else if (!trouble_since_) {
    trouble_since_ = Clock::now();
  } else if (seconds_between(*trouble_since_, Clock::now()) >= kTroubleGrace) {
    return end_job(fmt::format("watchdog: rank {} on {}\n", rank_, trouble));
  }
  const std::optional<Overdue> late = log_.overdue(limits_.collective);
  if (!late) return;
  if (late->comm_id != case_.comm_id || late->call.sequence != case_.sequence)
    case_ = {.comm_id = late->comm_id, .sequence = late->call.sequence};
  if (Clock::now() < case_.ask_at) return;
  const auto replies = peers_.ask(late->members, late->comm_id, kAnswerWait);
  const bool silent = std::find(replies.begin(), replies.end(), std::nullopt) != replies.end();
  case_.silent = silent ? case_.silent + 1 : 0;
  // While the others were asked the call may have come to its end after all.
  if (!log_.still_inside(*late) || (silent && case_.silent < kMostSilent)) return;
  if (!silent && may_go_on(*late, replies)) {
    if (!case_.told && !lower_rank_waits(*late, replies))
      std::fprintf(stderr, "watchdog: %s has lasted %.1f s on rank %d; the ranks that it waits for are at work\n",
                   describe(late->call).c_str(), late->call.seconds, rank_);
    case_.told = true;
    case_.stuck_since.reset();
    const std::chrono::duration<double> pause(std::min(limits_.collective / 4, kLongestPause));
    case_.ask_at = Clock::now() + std::chrono::duration_cast<Clock::duration>(pause);
    return;
  }
  if (!case_.stuck_since) case_.stuck_since = Clock::now();
  // One report is enough: the lowest rank that waits in the same call writes it.
  if (lower_rank_waits(*late, replies) && seconds_between(*case_.stuck_since, Clock::now()) < kGrace) return;
  end_job(watchdog_report(rank_, limits_.collective, *late, replies));
}

void Watchdog::end_job(const std::string& report) {
  fired_ = true;
  std::fputs(report.c_str(), stderr);
  std::fflush(stderr);
  peers_.end_job(report);
}

bool Watchdog::may_go_on(const Overdue& late, const std::vector<std::optional<RankStatus>>& replies) {
  const auto at_work = [&](const auto& reply) { return reply && is_at_work(*reply, limits_); };
  for (const std::optional<RankStatus>& reply : replies)
    if (is_missing(*reply, late) && !at_work(reply) && is_silent(*reply, limits_)) return false;
  if (std::any_of(replies.begin(), replies.end(), at_work)) return true;
  // A missing rank that waits in another collective waits for somebody in turn, perhaps for one that this rank shares
  // no smaller communicator with.
  std::vector<int> rest;
  for (int r = 0; r < peers_.ranks(); ++r)
    if (std::find(late.members.begin(), late.members.end(), r) == late.members.end()) rest.push_back(r);
  const auto said = peers_.ask(rest, late.comm_id, kAnswerWait);
  return std::any_of(said.begin(), said.end(), at_work);
}

bool Watchdog::lower_rank_waits(const Overdue& late, const std::vector<std::optional<RankStatus>>& replies) const {
  for (std::size_t i = 0; i < replies.size(); ++i) {
    if (late.members[i] >= rank_ || !replies[i]) continue;
    const Activity& theirs = replies[i]->asked;
    if (theirs.inside != 0 && theirs.sequence == late.call.sequence) return true;
  }
  return false;
}

}  // namespace emox
