#include "launch/run/lease_holder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <utility>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

constexpr std::size_t kTokenDigits = 32;
constexpr std::size_t kKeptCommand = 1000, kShownCommand = 160;  // characters

std::string first_line(const char* path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

std::string link_target(const char* path) {
  char target[256];
  const ssize_t n = readlink(path, target, sizeof target);
  return n > 0 ? std::string(target, idx(n)) : "";
}

struct ProcessStat {
  char state = '?';
  std::int64_t start_time = 0;
};

// Fields 3 and 22 of /proc/PID/stat. Field 2, the program's name, may hold anything, so they count from its last ')'.
std::optional<ProcessStat> stat_of(const std::string& pid) {
  const std::string line = first_line(fmt::format("/proc/{}/stat", pid).c_str());
  const auto name_end = line.rfind(')');
  if (name_end == std::string::npos) return std::nullopt;
  std::istringstream in(line.substr(name_end + 1));
  ProcessStat stat;
  in >> stat.state;
  std::string skipped;
  for (int field = 4; field < 22; ++field) in >> skipped;
  in >> stat.start_time;
  return in ? std::optional(stat) : std::nullopt;
}

std::string shortened(const std::string& text, std::size_t most) {
  return text.size() <= most ? text : text.substr(0, most) + "...";
}

std::string new_token() {
  std::random_device random;
  std::string token;
  for (int i = 0; i < 4; ++i) token += fmt::format("{:08x}", random() & 0xFFFFFFFFU);
  return token;
}

bool is_token(const std::string& text) {
  return text.size() == kTokenDigits && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

}  // namespace

LeaseHolder LeaseHolder::self(const std::vector<std::string>& command) {
  LeaseHolder h;
  char host[256] = "unknown";
  gethostname(host, sizeof host - 1);
  h.host = host;
  h.boot = first_line("/proc/sys/kernel/random/boot_id");
  h.pid_namespace = link_target("/proc/self/ns/pid");
  h.pid = getpid();
  h.start_time = stat_of("self").value_or(ProcessStat{}).start_time;
  if (const char* job = std::getenv("SLURM_JOB_ID"); job != nullptr) h.job = job;
  h.command = shortened(fmt::format("{}", fmt::join(command, " ")), kKeptCommand);
  h.since = h.renewed = utc_now();
  h.token = new_token();
  return h;
}

std::string LeaseHolder::to_text() const {
  const nlohmann::ordered_json j = {{"host", host},
                                    {"boot", boot},
                                    {"pid_namespace", pid_namespace},
                                    {"pid", pid},
                                    {"start_time", start_time},
                                    {"job", job},
                                    {"command", command},
                                    {"since", since},
                                    {"renewed", renewed},
                                    {"directory", directory},
                                    {"token", token}};
  // Host names and commands may hold any bytes.
  return j.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

std::optional<LeaseHolder> LeaseHolder::from_text(const std::string& text) {
  try {
    const auto j = nlohmann::json::parse(text);
    LeaseHolder h;
    const std::pair<const char*, std::string*> texts[] = {
        {"host", &h.host},       {"boot", &h.boot},       {"pid_namespace", &h.pid_namespace},
        {"job", &h.job},         {"command", &h.command}, {"since", &h.since},
        {"renewed", &h.renewed}, {"token", &h.token}};
    for (const auto& [key, value] : texts) *value = j.at(key).get<std::string>();
    h.pid = j.at("pid").get<std::int64_t>();
    h.start_time = j.at("start_time").get<std::int64_t>();
    h.directory = j.value("directory", "");
    if (!is_token(h.token)) return std::nullopt;  // it becomes a part of file names
    return h;
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;
  }
}

std::string LeaseHolder::describe() const {
  return fmt::format("process {} on {}{}, `{}`, since {}, last renewed {}", pid, host,
                     job.empty() ? "" : fmt::format(" (Slurm job {})", job), shortened(command, kShownCommand), since,
                     renewed);
}

std::optional<LeaseFile> LeaseFile::read(const std::filesystem::path& path) {
  // A link is not followed: what it leads to is not this directory's. A pipe must not make anybody wait.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (fd < 0 && errno == ENOENT) return std::nullopt;
  const int open_error = errno;
  struct stat kind = {};
  const bool plain = fd >= 0 ? fstat(fd, &kind) != 0 || S_ISREG(kind.st_mode)
                             : lstat(path.c_str(), &kind) != 0 || S_ISREG(kind.st_mode);
  if (!plain && fd >= 0) close(fd);
  require<UsageError>(plain, "{} is {}, not the plain file that says which job has this directory: remove it",
                      path.string(),
                      S_ISLNK(kind.st_mode)   ? "a symbolic link"
                      : S_ISDIR(kind.st_mode) ? "a directory"
                                              : "a special file");
  require<IoError>(fd >= 0, "cannot open {}: {}", path.string(), std::strerror(open_error));
  // Content and time of one file, whatever takes its place meanwhile.
  LeaseFile file;
  file.path = path;
  struct stat info = {};
  char buffer[4096];
  ssize_t n = 0;
  while ((n = ::read(fd, buffer, sizeof buffer)) > 0) file.text.append(buffer, idx(n));
  int error = n < 0 ? errno : 0;
  if (error == 0 && fstat(fd, &info) != 0) error = errno;
  close(fd);
  if (error == ESTALE) return std::nullopt;  // NFS: removed while it was open
  require<IoError>(error == 0, "cannot read {}: {}", path.string(), std::strerror(error));
  file.changed = std::chrono::seconds(info.st_mtim.tv_sec) + std::chrono::nanoseconds(info.st_mtim.tv_nsec);
  file.holder = LeaseHolder::from_text(file.text);
  return file;
}

bool can_be_looked_for(const LeaseHolder& holder, const LeaseHolder& other) {
  const bool known = !holder.boot.empty() && !holder.pid_namespace.empty() && holder.pid > 0 &&
                     holder.pid <= std::numeric_limits<pid_t>::max() && holder.start_time > 0;
  return known && holder.host == other.host && holder.boot == other.boot && holder.pid_namespace == other.pid_namespace;
}

bool process_exists(std::int64_t pid, std::int64_t start_time) {
  if (kill(static_cast<pid_t>(pid), 0) != 0 && errno == ESRCH) return false;
  const auto stat = stat_of(std::to_string(pid));
  // /proc may hide other people's processes (hidepid): then it is taken for the same one.
  if (!stat) return kill(static_cast<pid_t>(pid), 0) == 0 || errno != ESRCH;
  return stat->start_time == start_time && stat->state != 'Z' && stat->state != 'X';
}

std::optional<LeaseHolder> holder_now(const std::filesystem::path& directory) {
  constexpr std::chrono::seconds kStaleAfter{70};  // LeaseTiming's minute, and the clocks
  const auto found = LeaseFile::read(directory / "lease.json");
  if (!found || !found->holder) return std::nullopt;
  const LeaseHolder& holder = *found->holder;
  if (can_be_looked_for(holder, LeaseHolder::self({})))
    return process_exists(holder.pid, holder.start_time) ? std::optional(holder) : std::nullopt;
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return now - found->changed < kStaleAfter ? std::optional(holder) : std::nullopt;
}

std::string identity_of(const std::filesystem::path& directory) {
  struct stat info = {};
  if (stat(directory.c_str(), &info) != 0) return "";
  return fmt::format("{}:{}", info.st_dev, info.st_ino);
}

std::string inode_of(const std::string& identity) { return identity.substr(identity.find(':') + 1); }

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm tm{};
  char stamp[32];
  std::strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &tm));
  return stamp;
}

}  // namespace emox
