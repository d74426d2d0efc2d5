#include "parallel/checkpoint/durable_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
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

}  // namespace

FileDescriptor::FileDescriptor(const fs::path& path, int flags) : fd_(open(path.c_str(), flags | O_CLOEXEC)) {
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
  const FileDescriptor file(path, O_RDONLY);
  // Some file systems refuse to sync a directory (EINVAL); they have no stronger promise to give.
  const bool synced = fsync(file.get()) == 0 || (errno == EINVAL && fs::is_directory(path));
  require<IoError>(synced, "cannot write {} to the disk: {}", path.string(), std::strerror(errno));
}

void start_writing_to_disk(const fs::path& path) {
  const FileDescriptor file(path, O_WRONLY);
  sync_file_range(file.get(), 0, 0, SYNC_FILE_RANGE_WRITE);
}

void replace_directory(const fs::path& from, const fs::path& to) {
  if (!fs::exists(to)) {
    rename_path(from, to);
    sync_to_disk(parent_of(to));
    return;
  }
  fs::path old = from;
  if (renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) != 0) {
    // Not every file system can swap. Between the two renames neither is in place, but both are on the disk.
    old = to.string() + ".tmp-old";
    fs::remove_all(old);
    rename_path(to, old);
    rename_path(from, to);
  }
  sync_to_disk(parent_of(to));
  fs::remove_all(old);
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
  std::ifstream in(path, std::ios::binary);
  require<IoError>(in.good(), "cannot open {}: {}", path.string(), std::strerror(errno));
  std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  require<IoError>(!in.bad(), "cannot read {}", path.string());
  return text;
}

}  // namespace emox
