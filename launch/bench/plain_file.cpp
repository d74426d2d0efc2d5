#include "launch/bench/plain_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/files/atomic_file.h"
#include "runtime/files/files.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kFileBlock = std::size_t{16} << 20;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

double write_plain_file(const fs::path& path, const TensorView& memory) {
  const auto start = Clock::now();
  {
    AtomicFile file(path);
    const std::span<const std::byte> all(static_cast<const std::byte*>(memory.raw()), memory.bytes());
    for (std::size_t at = 0; at < all.size(); at += kFileBlock)
      file.write(all.subspan(at, std::min(kFileBlock, all.size() - at)));
    file.commit();
  }
  return seconds_since(start);
}

double read_plain_file(const fs::path& path, const TensorView& memory) {
  const auto start = Clock::now();
  const FileDescriptor file(path, O_RDONLY);
  auto* to = static_cast<std::byte*>(memory.raw());
  for (std::size_t at = 0; at < memory.bytes();) {
    const ssize_t n = read(file.get(), to + at, std::min(kFileBlock, memory.bytes() - at));
    if (n < 0 && errno == EINTR) continue;
    require<IoError>(n > 0, "cannot read {}: {}", path.string(), n < 0 ? std::strerror(errno) : "it is too short");
    at += idx(n);
  }
  return seconds_since(start);
}

void remove_and_settle(const fs::path& path) {
  fs::remove_all(path);
  const FileDescriptor parent(path.parent_path(), O_RDONLY);
  const bool settled = syncfs(parent.get()) == 0;
  require<IoError>(settled, "cannot sync the file system of {}: {}", path.string(), std::strerror(errno));
}

void drop_from_cache(const fs::path& path) {
  const FileDescriptor file(path, O_RDONLY);
  const int failed = posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED);
  require<IoError>(failed == 0, "cannot drop {} from the cache: {}", path.string(), std::strerror(failed));
}

}  // namespace emox
