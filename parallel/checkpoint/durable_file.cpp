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

/// A descriptor that closes itself.
class Descriptor {
 public:
  Descriptor(const fs::path& path, int flags) : fd_(open(path.c_str(), flags | O_CLOEXEC)) {
    require<IoError>(fd_ >= 0, "cannot open {}: {}", path.string(), std::strerror(errno));
  }
  ~Descriptor() { close(fd_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

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
  const Descriptor file(path, O_RDONLY);
  // Some file systems refuse to sync a directory (EINVAL); they have no stronger promise to give.
  const bool synced = fsync(file.get()) == 0 || (errno == EINVAL && fs::is_directory(path));
  require<IoError>(synced, "cannot write {} to the disk: {}", path.string(), std::strerror(errno));
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

std::string read_text_file(const fs::path& path) {
  // Not a stream: those throw exceptions of their own, without the file's name, when a read fails.
  const Descriptor file(path, O_RDONLY);
  std::string text;
  std::array<char, 1 << 16> piece;
  for (;;) {
    const ssize_t n = read(file.get(), piece.data(), piece.size());
    if (n < 0 && errno == EINTR) continue;
    require<IoError>(n >= 0, "cannot read {}: {}", path.string(), std::strerror(errno));
    if (n == 0) return text;
    text.append(piece.data(), static_cast<std::size_t>(n));
  }
}

}  // namespace emox
