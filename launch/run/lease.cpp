#include "launch/run/lease.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <optional>
#include <system_error>
#include <utility>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using std::chrono::nanoseconds;

constexpr const char* kLeaseName = "lease.json";
constexpr milliseconds kBusy{5}, kBusyAtMost{5000};  // how long another job may need to succeed a stale lease

constexpr std::chrono::seconds kClockStep{2};

// steady_clock stands still while the host is suspended.
nanoseconds boot_clock() {
  timespec now = {};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return std::chrono::seconds(now.tv_sec) + nanoseconds(now.tv_nsec);
}

/// 0, or errno. `flags`: besides O_WRONLY.
int write_file(const fs::path& path, const std::string& text, int flags) {
  const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC | flags, 0644);
  if (fd < 0) return errno;
  const ssize_t n = write(fd, text.data(), text.size());
  int error = n == static_cast<ssize_t>(text.size()) ? 0 : n < 0 ? errno : ENOSPC;
  if (close(fd) != 0 && error == 0) error = errno;
  return error;
}

void remove_quietly(const fs::path& path) { unlink(path.c_str()); }

bool same_lease(const LeaseFile& a, const LeaseFile& b) {
  if (a.holder && b.holder) return a.holder->token == b.holder->token;
  return !a.holder && !b.holder && a.text == b.text;
}

/// One attempt to take, or to give back, the lease of a directory. Leaves no file but the lease itself.
class Claim {
 public:
  Claim(fs::path directory, const LeaseHolder& self, milliseconds stale_after)
      : directory_(std::move(directory)),
        own_(directory_ / fmt::format("{}.{}.tmp", kLeaseName, self.token)),
        self_(self),
        text_(self.to_text()),
        stale_after_(stale_after) {
    const int error = write_file(own_, text_, O_CREAT | O_EXCL);
    if (error != 0) remove_quietly(own_);
    require<UsageError>(error == 0, "cannot write in the run directory {}: {}; choose another with --run.dir=DIR",
                        directory_.string(), std::strerror(error));
  }
  ~Claim() { remove_quietly(own_); }
  Claim(const Claim&) = delete;
  Claim& operator=(const Claim&) = delete;

  /// Nothing when `place` is ours now, otherwise what is held there.
  std::optional<LeaseFile> take(const fs::path& place) {
    for (int vanished = 0;;) {
      if (create(place)) return std::nullopt;
      auto found = LeaseFile::read(place);
      if (!found) {  // given back just now
        require<IoError>(++vanished < 1000, "{} can neither be made nor read: remove it", place.string());
        continue;
      }
      if (found->holder && found->holder->token == self_.token) return std::nullopt;  // NFS may lose link's answer
      if (is_held(*found)) return found;
      const fs::path successor = successor_of(*found);
      if (auto other = take(successor)) return other;
      // Nobody else replaces or removes what is at `place` now, unless that happened before we were the successor.
      const auto still = LeaseFile::read(place);
      if (still && same_lease(*still, *found) && !is_held(*still) && std::rename(successor.c_str(), place.c_str()) == 0)
        return std::nullopt;
      remove_quietly(successor);
    }
  }

  /// Removes what is at `place` if it is ours.
  void give_back(const fs::path& place) {
    const auto is_ours = [&] {
      const auto found = LeaseFile::read(place);
      return found && found->holder && found->holder->token == self_.token;
    };
    if (!is_ours()) return;
    const fs::path successor = directory_ / fmt::format("{}.after-{}", kLeaseName, self_.token);
    if (!create(successor)) return;  // another job takes this lease for stale and replaces it
    if (is_ours()) remove_quietly(place);
    remove_quietly(successor);
  }

  bool is_held(const LeaseFile& found) const {
    if (found.holder && can_be_looked_for(*found.holder, self_)) {
      // In a copy of a directory the lease names a job that has the original.
      const std::string &there = found.holder->directory, &here = self_.directory;
      const bool lives = process_exists(found.holder->pid, found.holder->start_time);
      if (!lives || there.empty() || there == here) return lives;
      // The same directory by another mount has another device number; then its age tells.
      if (inode_of(there) != inode_of(here)) return false;
    }
    const nanoseconds age = age_of(found);
    // Written in the future: by a clock that was put back since. From now on its age counts like any other's.
    if (age < -kClockStep) utimensat(AT_FDCWD, found.path.c_str(), nullptr, AT_SYMLINK_NOFOLLOW);
    return age < stale_after_;
  }

  /// What jobs that died while they took a lease have left. Nothing depends on it.
  void remove_leftovers() const noexcept try {
    for (const auto& entry : fs::directory_iterator(directory_)) {
      const std::string name = entry.path().filename();
      if (!name.starts_with(std::string(kLeaseName) + ".") || entry.path() == own_) continue;
      const auto found = LeaseFile::read(entry.path());
      if (found && !is_held(*found)) remove_quietly(entry.path());
    }
  } catch (const std::exception&) {
  }

 private:
  fs::path successor_of(const LeaseFile& found) const {
    return directory_ / fmt::format("{}.after-{}", kLeaseName, found.holder ? found.holder->token : "unreadable");
  }

  /// False when something is at `place` already.
  bool create(const fs::path& place) {
    if (link(own_.c_str(), place.c_str()) == 0) return true;
    int error = errno;
    // File systems without hard links: what a reader sees between creation and content is unreadable, hence held.
    if (error == EPERM || error == EOPNOTSUPP || error == ENOSYS || error == EMLINK)
      error = write_file(place, text_, O_CREAT | O_EXCL);
    require<UsageError>(error == 0 || error == EEXIST,
                        "cannot write in the run directory {}: {}; choose another with --run.dir=DIR",
                        directory_.string(), std::strerror(error));
    return error == 0;
  }

  /// Since it was written last, by the clock of the file system: a file that is written now has its present time.
  nanoseconds age_of(const LeaseFile& found) const {
    const int error = write_file(own_, text_, 0);
    const auto now = error == 0 ? LeaseFile::read(own_) : std::nullopt;
    require<IoError>(now.has_value(), "cannot write {}: {}", own_.string(), std::strerror(error));
    return now->changed - found.changed;
  }

  const fs::path directory_, own_;
  const LeaseHolder self_;
  const std::string text_;
  const milliseconds stale_after_;
};

[[noreturn]] void refuse(const fs::path& directory, const LeaseFile& found, const LeaseHolder& self,
                         milliseconds stale_after) {
  const double seconds = std::chrono::duration<double>(stale_after).count();
  if (!found.holder)
    fail<TryAgainError>(
        "the run directory {} is in use: its lease.json was written less than {:g} s ago and cannot be read. Try "
        "again later, or choose another directory with --run.dir=DIR",
        directory.string(), seconds);
  const LeaseHolder& h = *found.holder;
  const std::string ends =
      can_be_looked_for(h, self)
          ? fmt::format("stop it (`kill -USR1 {}`: it saves first)", h.pid)
          : fmt::format(
                "stop it on {} (`kill -USR1 {}`: it saves first; if it is dead, the directory is free {:g} s "
                "after its last sign of life)",
                h.host, h.pid, seconds);
  fail<TryAgainError>(
      "the run directory {} is in use: {}. Wait until it ends, {}, or choose another directory with --run.dir=DIR",
      directory.string(), h.describe(), ends);
}

/// Returns whether it made the directory.
bool make_directory(const fs::path& directory, LeaseHolder& self) {
  std::error_code error;
  const bool made = fs::create_directories(directory, error);
  require<UsageError>(!error, "cannot make the run directory {}: {}; choose another with --run.dir=DIR",
                      directory.string(), error.message());
  self.directory = identity_of(directory);
  return made;
}

void take_lease(const fs::path& directory, const fs::path& file, const LeaseHolder& self, milliseconds stale_after) {
  Claim claim(directory, self, stale_after);
  const nanoseconds begin = boot_clock();
  while (const auto found = claim.take(file)) {
    // A job that is about to succeed a stale lease is not told apart from a holder here, but is one in a moment: wait
    // for that, so that the message names who has the directory.
    const auto now = LeaseFile::read(file);
    const bool settled = now && same_lease(*now, *found);
    if (settled || boot_clock() - begin > kBusyAtMost) refuse(directory, *found, self, stale_after);
    std::this_thread::sleep_for(kBusy);
  }
  claim.remove_leftovers();
}

}  // namespace

RunLease::RunLease(fs::path directory, LeaseHolder self, LeaseTiming timing)
    : directory_(std::move(directory)),
      file_(directory_ / kLeaseName),
      timing_(timing),
      self_(std::move(self)),
      renewed_(boot_clock()) {
  made_directory_ = make_directory(directory_, self_);
  take_lease(directory_, file_, self_, timing_.stale_after);
  // The thread is born with all signals blocked: those that ask for an end belong to launch/run/signals.h.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    thread_ = std::thread([this] { renew_until_told(); });
  } catch (...) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    throw;  // the lease of a process that ends is free
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

RunLease::~RunLease() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  end_.notify_all();
  thread_.join();
  try {
    if (!is_lost_) Claim(directory_, self_, timing_.stale_after).give_back(file_);
    // A start that was refused leaves no empty directory.
    if (made_directory_) rmdir(directory_.c_str());
  } catch (const std::exception& e) {
    std::fprintf(stderr, "warning: the lease %s could not be given back: %s\n", file_.c_str(), e.what());
  }
}

void RunLease::renew_until_told() {
  std::unique_lock lock(mutex_);
  while (!end_.wait_for(lock, timing_.renew_every, [&] { return ends_; })) renew();
}

// Called with the mutex held.
void RunLease::renew() {
  if (is_lost_) return;
  const auto lose = [&](std::string why) {
    lost_ = std::move(why);
    is_lost_ = true;
  };
  const int fd = open(file_.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0 && errno == ENOENT) return lose("its lease.json was removed");
  if (fd < 0) {
    problem_ = std::strerror(errno);
    return;
  }
  char buffer[16384];  // more than any lease has
  const ssize_t n = pread(fd, buffer, sizeof buffer, 0);
  const int read_error = n < 0 ? errno : 0;
  const auto holder = LeaseHolder::from_text(std::string(buffer, n < 0 ? 0 : idx(n)));
  if (read_error == 0 && (!holder || holder->token != self_.token)) {
    close(fd);
    return lose(holder ? "it now belongs to " + holder->describe() : "its lease.json was overwritten");
  }
  self_.renewed = utc_now();
  const std::string now = self_.to_text();  // as long as before: a reader never sees half of it
  int error = read_error;
  if (error == 0 && pwrite(fd, now.data(), now.size(), 0) != static_cast<ssize_t>(now.size())) error = errno;
  if (close(fd) != 0 && error == 0) error = errno;
  problem_ = error != 0 ? std::strerror(error) : "";
  if (error == 0) renewed_ = boot_clock();
}

void RunLease::fail_if_lost() const {
  require(lost_.empty(),
          "this job has lost the run directory {}: {}. It stops now, so that two jobs do not write there",
          directory_.string(), lost_);
  const nanoseconds age = boot_clock() - renewed_.load();
  require<IoError>(age < timing_.stale_after,
                   "the lease of the run directory {} could not be renewed for {:.0f} s ({}), so another job may take "
                   "it; this one stops",
                   directory_.string(), std::chrono::duration<double>(age).count(), problem_);
}

void RunLease::check() {
  if (!is_lost_ && boot_clock() - renewed_.load() < 2 * timing_.renew_every) return;
  confirm();
}

void RunLease::confirm() {
  const std::lock_guard lock(mutex_);
  renew();
  fail_if_lost();
}

}  // namespace emox
