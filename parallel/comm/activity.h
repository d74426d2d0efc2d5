// What the collectives of one rank are doing, written by the rank and read by its watchdog and by other ranks'.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace emox {

/// One collective call in the words of a report. Travels between ranks as bytes, so it holds no pointers.
struct Activity {
  char comm[40] = {};  ///< the communicator's name
  char op[20] = {};
  std::int64_t sequence = 0;  ///< how many collectives this communicator has entered; 0: none yet
  std::int64_t bytes = 0;
  double seconds = 0;       ///< since it was entered (inside) or finished
  std::int32_t inside = 0;  ///< 1 while the call has not returned
};

/// A rank's answer to "how far are you on this communicator, and what are you doing?".
struct RankStatus {
  Activity asked;
  Activity latest;         ///< the call it is inside of, else the last one it finished, on whatever communicator
  double progress_s = -1;  ///< since it last reported progress; negative: it never did
  double io_s = -1;        ///< since the last sign of life in the I/O phase that it is in; negative: in none
};

/// A call that has lasted too long.
struct Overdue {
  std::uint64_t comm_id = 0;
  Activity call;
  std::vector<int> members;  ///< world ranks of the communicator
};

class ActivityLog {
 public:
  void open(std::uint64_t comm_id, std::string_view name, std::vector<int> members);
  void close(std::uint64_t comm_id);
  void enter(std::uint64_t comm_id, std::string_view op, std::size_t bytes);
  void leave(std::uint64_t comm_id);
  void progress();
  void note_io(bool begins);
  /// What knows why calls of the communicator cannot end (CollectiveObserver::probe).
  void probe(std::uint64_t comm_id, std::function<std::string()> trouble);
  /// What the first such says; empty: nothing.
  std::string trouble() const;

  /// In place of WatchdogLimits::collective from now on, in seconds.
  void set_limit(double seconds);
  double limit_or(double otherwise) const;

  /// The log's clock stands still unless it is advanced: time in which the whole process was stopped does not count.
  void advance(double seconds);
  RankStatus status(std::uint64_t comm_id) const;
  /// The call that has lasted longest, if longer than `limit` seconds.
  std::optional<Overdue> overdue(double limit) const;
  bool still_inside(const Overdue& call) const;

 private:
  struct Line {
    Activity call;
    double since = 0;
    std::vector<int> members;
    std::function<std::string()> trouble;
  };
  Activity aged(const Line& line) const;

  mutable std::mutex mutex_;
  double clock_ = 0;
  std::optional<double> limit_;
  std::map<std::uint64_t, Line> lines_;
  Line last_;  // outlives the communicator that it was on
  std::optional<double> progress_at_;
  double io_sign_at_ = 0;  // of an I/O phase: its beginning, a report of progress, the end of a collective
  int io_phases_ = 0;      // open ones, nested
};

}  // namespace emox
