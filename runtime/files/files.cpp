#include "runtime/files/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <system_error>
#include <vector>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/files/file_error.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

/// errno, 0 for none.
int read_all(int fd, std::string& text) {
  std::array<char, 1 << 16> piece;
  for (;;) {
    const ssize_t n = read(fd, piece.data(), piece.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return n < 0 ? errno : 0;
    text.append(piece.data(), idx(n));
  }
}

}  // namespace

FileDescriptor::FileDescriptor(const fs::path& path, int flags) : fd_(open(path.c_str(), flags | O_CLOEXEC)) {
  if (fd_ < 0 && (flags & O_ACCMODE) == O_RDONLY) fail_to_read("open", path, errno);
  require<IoError>(fd_ >= 0, "cannot open {}: {}", path.string(), std::strerror(errno));
}

FileDescriptor::~FileDescriptor() { close(fd_); }

// Not streams: those throw exceptions of their own, without the file's name, when a read fails.
std::string read_text(const fs::path& path) {
  const FileDescriptor file(path, O_RDONLY | O_NONBLOCK);  // a pipe of that name would wait for its writer
  struct stat info {};
  if (fstat(file.get(), &info) == 0 && !S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode))
    fail_to_read("read", path, EINVAL);
  std::string text;
  if (const int error = read_all(file.get(), text); error != 0) fail_to_read("read", path, error);
  return text;
}

TextOrError try_read_text(const fs::path& path) {
  TextOrError result;
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return {"", errno};
  result.error = read_all(fd, result.text);
  close(fd);
  return result;
}

std::int64_t bytes_of_file(const fs::path& path) {
  std::error_code error;
  const auto bytes = fs::file_size(path, error);
  if (error) fail_to_read("read", path, error.value());
  return static_cast<std::int64_t>(bytes);
}

fs::path parent_of(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : fs::path("."); }

bool name_is_taken(const fs::path& path) {
  std::error_code error;
  const fs::file_type type = fs::symlink_status(path, error).type();
  require<IoError>(type != fs::file_type::none, "cannot look at {}: {}", path.string(), error.message());
  return type != fs::file_type::not_found;
}

void make_directories(const fs::path& path) {
  std::error_code error;
  // Of the missing ones, which the disk is to know by name. The last one's in any case: another rank may have made it
  // just now, and not synced it yet.
  std::vector<fs::path> parents = {parent_of(path)};
  while (!fs::exists(parents.back(), error) && parents.back() != parent_of(parents.back()))
    parents.push_back(parent_of(parents.back()));
  fs::create_directories(path, error);
  require<IoError>(!error, "cannot make the directory {}: {}", path.string(), error.message());
  for (const fs::path& parent : parents) sync_to_disk(parent);
}

void rename_path(const fs::path& from, const fs::path& to) {
  const bool renamed = std::rename(from.c_str(), to.c_str()) == 0;
  require<IoError>(renamed, "cannot rename {} to {}: {}", from.string(), to.string(), std::strerror(errno));
}

void sync_to_disk(const fs::path& path) {
  const FileDescriptor file(path, O_RDONLY);
  // Some file systems refuse to sync a directory (EINVAL); they have no stronger promise to give.
  const bool synced = fsync(file.get()) == 0 || (errno == EINVAL && fs::is_directory(path));
  require<IoError>(synced, "cannot write {} to the disk: {}", path.string(), std::strerror(errno));
}

void start_writing_to_disk(const fs::path& path) {
  const FileDescriptor file(path, O_WRONLY);
  sync_file_range(file.get(), 0, 0, SYNC_FILE_RANGE_WRITE);
}

fs::path name_aside(const fs::path& path, std::string_view word) {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  std::array<char, 32> stamp{};
  std::strftime(stamp.data(), stamp.size(), "%Y%m%dT%H%M%SZ", &utc);
  const std::string name = fmt::format("{}.{}-{}", path.string(), word, stamp.data());
  fs::path free = name;
  for (int n = 2; name_is_taken(free); ++n) free = fmt::format("{}-{}", name, n);
  return free;
}

fs::path move_aside(const fs::path& path) {
  fs::path aside = name_aside(path);
  rename_path(path, aside);
  return aside;
}

}  // namespace emox
