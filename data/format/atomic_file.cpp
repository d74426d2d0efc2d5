#include "data/format/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "runtime/core/error.h"

namespace emox {
namespace {

/// Closes on every path out of a function that throws.
struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

void write_all(int fd, std::span<const std::byte> bytes, const std::filesystem::path& path) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    require<IoError>(n > 0, "cannot write {}: {}; check the free space of its file system", path.string(),
                     n == 0 ? "nothing was written" : std::strerror(errno));
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
}

}  // namespace

void write_file_atomically(const std::filesystem::path& path, std::span<const std::span<const std::byte>> parts) {
  const std::filesystem::path temporary = path.string() + ".tmp";
  {
    const Descriptor file{::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666)};
    require<IoError>(file.fd >= 0, "cannot create {}: {}; check that the directory exists and is writable",
                     temporary.string(), std::strerror(errno));
    for (const auto& part : parts) write_all(file.fd, part, temporary);
    require<IoError>(::fsync(file.fd) == 0, "cannot flush {} to the disk: {}", temporary.string(),
                     std::strerror(errno));
  }
  require<IoError>(::rename(temporary.c_str(), path.c_str()) == 0, "cannot rename {} to {}: {}", temporary.string(),
                   path.string(), std::strerror(errno));
  flush_directory(path.parent_path().empty() ? std::filesystem::path(".") : path.parent_path());
}

void write_file_atomically(const std::filesystem::path& path, std::string_view text) {
  const std::span<const std::byte> part = std::as_bytes(std::span(text.data(), text.size()));
  write_file_atomically(path, std::span(&part, 1));
}

void flush_directory(const std::filesystem::path& directory) {
  const Descriptor handle{::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  // Some network file systems cannot flush a directory (EINVAL); the rename is still atomic there.
  const bool done = handle.fd >= 0 && (::fsync(handle.fd) == 0 || errno == EINVAL);
  require<IoError>(done, "cannot flush the directory {}: {}", directory.string(), std::strerror(errno));
}

}  // namespace emox
