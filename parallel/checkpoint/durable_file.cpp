#include "parallel/checkpoint/durable_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "runtime/core/error.h"
#include "runtime/files/file_error.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

fs::path parent_of(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : fs::path("."); }

void rename_path(const fs::path& from, const fs::path& to) {
  const bool renamed = std::rename(from.c_str(), to.c_str()) == 0;
  require<IoError>(renamed, "cannot rename {} to {}: {}", from.string(), to.string(), std::strerror(errno));
}

/// Where the next attempt will tell, or what is left is plainly unfinished.
std::error_code& ignored_error() {
  thread_local std::error_code error;
  return error;
}

/// Also of a link that leads nowhere.
bool is_there(const fs::path& path) { return fs::exists(fs::symlink_status(path)); }

/// False where the file system cannot, or the disk fails.
bool swap_paths(const fs::path& a, const fs::path& b) {
  return renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0;
}

}  // namespace

FileDescriptor::FileDescriptor(const fs::path& path, int flags) : fd_(open(path.c_str(), flags | O_CLOEXEC)) {
  if (fd_ < 0 && (flags & O_ACCMODE) == O_RDONLY) fail_to_read("open", path, errno);
  require<IoError>(fd_ >= 0, "cannot open {}: {}", path.string(), std::strerror(errno));
}

FileDescriptor::~FileDescriptor() { close(fd_); }

DurableFile::DurableFile(fs::path path) : path_(std::move(path)), temporary_(path_.string() + ".tmp") {
  fd_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  require<IoError>(fd_ >= 0, "cannot create {}: {}", temporary_.string(), std::strerror(errno));
}

DurableFile::~DurableFile() {
  if (fd_ < 0) return;
  close(fd_);
  unlink(temporary_.c_str());
}

void DurableFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    require<IoError>(n > 0, "cannot write {}: {}", path_.string(),
                     n < 0 ? system_reason(errno) : "nothing was written");
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
}

void DurableFile::commit() {
  const bool synced = fsync(fd_) == 0;
  require<IoError>(synced, "cannot write {}: {}", path_.string(), system_reason(errno));
  rename_path(temporary_, path_);
  close(fd_);
  fd_ = -1;
  sync_to_disk(parent_of(path_));
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

fs::path name_aside(const fs::path& path) {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  std::array<char, 32> stamp{};
  std::strftime(stamp.data(), stamp.size(), "%Y%m%dT%H%M%SZ", &utc);
  const std::string name = fmt::format("{}.aside-{}", path.string(), stamp.data());
  fs::path free = name;
  for (int n = 2; is_there(free); ++n) free = fmt::format("{}-{}", name, n);
  return free;
}

PlacedDirectory::PlacedDirectory(fs::path from, fs::path to, Existing existing)
    : from_(std::move(from)), to_(std::move(to)), existing_(existing) {
  try {
    place();
    sync_to_disk(parent_of(to_));
  } catch (const IoError&) {
    take_back();
    throw;
  }
}

void PlacedDirectory::place() {
  const bool occupied = is_there(to_);
  if (occupied && existing_ == Existing::Remove && swap_paths(from_, to_)) {
    old_ = from_;
    return;
  }
  if (occupied) {
    // Between the two renames neither is in place, but both are on the disk. Not every file system can swap.
    const fs::path aside = existing_ == Existing::MoveAside ? name_aside(to_) : fs::path(to_.string() + ".tmp-old");
    if (existing_ == Existing::Remove) fs::remove_all(aside, ignored_error());
    rename_path(to_, aside);
    old_ = aside;
  }
  rename_path(from_, to_);
}

PlacedDirectory::~PlacedDirectory() {
  if (!kept_) take_back();
}

void PlacedDirectory::take_back() {
  if (old_ == from_) {
    swap_paths(from_, to_);
    return;
  }
  if (!is_there(from_) && std::rename(to_.c_str(), from_.c_str()) != 0) fs::remove_all(to_, ignored_error());
  if (!old_.empty()) std::rename(old_.c_str(), to_.c_str());
}

fs::path PlacedDirectory::keep() {
  kept_ = true;
  if (existing_ == Existing::MoveAside) return old_;
  if (!old_.empty()) fs::remove_all(old_, ignored_error());
  return {};
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

void replace_link(const fs::path& target, const fs::path& link) {
  const fs::path temporary = link.string() + ".tmp";
  const auto lead_to = [&](const fs::path& there) {
    unlink(temporary.c_str());  // a crash's leftover
    const bool linked = symlink(there.c_str(), temporary.c_str()) == 0;
    require<IoError>(linked, "cannot make the link {}: {}", temporary.string(), std::strerror(errno));
    // A copy of the tree that followed links has a directory here. It is not ours to delete.
    if (is_there(link) && !fs::is_symlink(link)) rename_path(link, link.string() + ".replaced");
    rename_path(temporary, link);
    sync_to_disk(parent_of(link));
  };
  const fs::path before = fs::read_symlink(link, ignored_error());
  try {
    lead_to(target);
  } catch (const IoError&) {
    unlink(temporary.c_str());
    if (fs::read_symlink(link, ignored_error()) == before) throw;
    try {
      require<IoError>(!before.empty(), "{} was not there before", link.string());
      lead_to(before);
    } catch (const IoError&) {
      unlink(link.c_str());
    }
    throw;
  }
}

std::int64_t bytes_of_file(const fs::path& path) {
  std::error_code error;
  const auto bytes = fs::file_size(path, error);
  if (error) fail_to_read("read", path, error.value());
  return static_cast<std::int64_t>(bytes);
}

std::string read_text_file(const fs::path& path) {
  // Not a stream: those throw exceptions of their own, without the file's name, when a read fails.
  const FileDescriptor file(path, O_RDONLY | O_NONBLOCK);  // a pipe of that name would wait for its writer
  struct stat info {};
  if (fstat(file.get(), &info) == 0 && !S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode))
    fail_to_read("read", path, EINVAL);
  std::string text;
  std::array<char, 1 << 16> piece;
  for (;;) {
    const ssize_t n = read(file.get(), piece.data(), piece.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_to_read("read", path, errno);
    if (n == 0) return text;
    text.append(piece.data(), static_cast<std::size_t>(n));
  }
}

}  // namespace emox
