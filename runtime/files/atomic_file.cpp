#include "runtime/files/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/files/file_error.h"
#include "runtime/files/files.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kCollected = std::size_t{1} << 16;

fs::path temporary_name(const fs::path& path) { return path.string() + ".tmp"; }

int create(const fs::path& path) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  require<IoError>(fd >= 0, "cannot create {}: {}; check that the directory exists and is writable", path.string(),
                   std::strerror(errno));
  return fd;
}

}  // namespace

TemporaryPath::TemporaryPath(fs::path path) : path_(std::move(path)), temporary_(temporary_name(path_)) {}

TemporaryPath::~TemporaryPath() {
  if (!in_place_) unlink(temporary_.c_str());
}

void TemporaryPath::commit() {
  rename_path(temporary_, path_);
  in_place_ = true;
  sync_to_disk(parent_of(path_));
}

AtomicFile::AtomicFile(fs::path path) : path_(std::move(path)), fd_(create(temporary_name(path_))), temporary_(path_) {}

AtomicFile::~AtomicFile() { close(fd_); }

void AtomicFile::write(std::span<const std::byte> bytes) {
  if (collected_.size() + bytes.size() > kCollected) flush();
  if (bytes.size() >= kCollected) return write_out(bytes);
  collected_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

void AtomicFile::write_out(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    require<IoError>(n > 0, "cannot write {}: {}; check the free space of its file system", path_.string(),
                     n < 0 ? system_reason(errno) : "nothing was written");
    bytes = bytes.subspan(idx(n));
  }
}

void AtomicFile::flush() {
  write_out(std::as_bytes(std::span(collected_)));
  collected_.clear();
}

void AtomicFile::commit() {
  flush();
  const bool synced = fsync(fd_) == 0;
  require<IoError>(synced, "cannot write {}: {}; check the free space of its file system", path_.string(),
                   system_reason(errno));
  temporary_.commit();
}

void write_file_atomically(const fs::path& path, std::span<const std::span<const std::byte>> parts) {
  AtomicFile file(path);
  for (const auto& part : parts) file.write(part);
  file.commit();
}

void write_file_atomically(const fs::path& path, std::string_view text) {
  const std::span<const std::byte> part = std::as_bytes(std::span(text));
  write_file_atomically(path, std::span(&part, 1));
}

}  // namespace emox
