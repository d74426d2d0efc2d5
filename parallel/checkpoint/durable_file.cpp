#include "parallel/checkpoint/durable_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <system_error>

#include "runtime/core/error.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

fs::path parent_of(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : fs::path("."); }

void rename_path(const fs::path& from, const fs::path& to) {
  const bool renamed = std::rename(from.c_str(), to.c_str()) == 0;
  require<IoError>(renamed, "cannot rename {} to {}: {}", from.string(), to.string(), std::strerror(errno));
}

/// False where the file system cannot, or the disk fails.
bool swap_paths(const fs::path& a, const fs::path& b) {
  return renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0;
}

}  // namespace

OpenFile::OpenFile(const fs::path& path, int flags) : fd_(open(path.c_str(), flags | O_CLOEXEC)) {
  require<IoError>(fd_ >= 0, "cannot open {}: {}", path.string(), std::strerror(errno));
}

OpenFile::~OpenFile() { close(fd_); }

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
                     n < 0 ? std::strerror(errno) : "nothing was written");
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
}

void DurableFile::commit() {
  const bool synced = fsync(fd_) == 0;
  require<IoError>(synced, "cannot write {}: {}", path_.string(), std::strerror(errno));
  rename_path(temporary_, path_);
  close(fd_);
  fd_ = -1;
  sync_to_disk(parent_of(path_));
}

void sync_to_disk(const fs::path& path) {
  const OpenFile file(path, O_RDONLY);
  // Some file systems refuse to sync a directory (EINVAL); they have no stronger promise to give.
  const bool synced = fsync(file.descriptor()) == 0 || (errno == EINVAL && fs::is_directory(path));
  require<IoError>(synced, "cannot write {} to the disk: {}", path.string(), std::strerror(errno));
}

void start_writing_to_disk(const fs::path& path) {
  const OpenFile file(path, O_WRONLY);
  sync_file_range(file.descriptor(), 0, 0, SYNC_FILE_RANGE_WRITE);
}

void replace_directory(const fs::path& from, const fs::path& to) {
  std::error_code ignored;  // what is left then is plainly unfinished
  const bool replaces = fs::exists(to);
  const bool swapped = replaces && swap_paths(from, to);
  // Not every file system can swap. Between the two renames neither is in place, but both are on the disk.
  const fs::path old = swapped ? from : fs::path(to.string() + ".tmp-old");
  try {
    if (replaces && !swapped) {
      fs::remove_all(old, ignored);
      rename_path(to, old);
    }
    if (!swapped) rename_path(from, to);
    sync_to_disk(parent_of(to));
  } catch (const IoError&) {
    // What may not be on the disk must not be found there, and what was there before must.
    if (swapped) {
      swap_paths(from, to);
    } else {
      if (!fs::exists(from) && std::rename(to.c_str(), from.c_str()) != 0) fs::remove_all(to, ignored);
      if (replaces && !fs::exists(to)) std::rename(old.c_str(), to.c_str());
    }
    throw;
  }
  if (replaces) fs::remove_all(old, ignored);
}

void make_directories(const fs::path& path) {
  std::error_code error;
  fs::create_directories(path, error);
  require<IoError>(!error, "cannot make the directory {}: {}", path.string(), error.message());
}

void replace_link(const fs::path& target, const fs::path& link) {
  const fs::path temporary = link.string() + ".tmp";
  unlink(temporary.c_str());  // a crash's leftover
  const bool linked = symlink(target.c_str(), temporary.c_str()) == 0;
  require<IoError>(linked, "cannot make the link {}: {}", temporary.string(), std::strerror(errno));
  // A copy of the tree that followed links has a directory here. It is not ours to delete.
  if (fs::is_directory(fs::symlink_status(link))) rename_path(link, link.string() + ".replaced");
  rename_path(temporary, link);
  sync_to_disk(parent_of(link));
}

std::int64_t bytes_of_file(const fs::path& path) {
  std::error_code error;
  const auto bytes = fs::file_size(path, error);
  require<IoError>(!error, "cannot read {}: {}", path.string(), error.message());
  return static_cast<std::int64_t>(bytes);
}

std::string read_text_file(const fs::path& path) {
  // Not a stream: those throw exceptions of their own, without the file's name, when a read fails.
  const OpenFile file(path, O_RDONLY);
  std::string text;
  std::array<char, 1 << 16> piece;
  for (;;) {
    const ssize_t n = read(file.descriptor(), piece.data(), piece.size());
    if (n < 0 && errno == EINTR) continue;
    require<IoError>(n >= 0, "cannot read {}: {}", path.string(), std::strerror(errno));
    if (n == 0) return text;
    text.append(piece.data(), static_cast<std::size_t>(n));
  }
}

}  // namespace emox
