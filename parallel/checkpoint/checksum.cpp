#include "parallel/checkpoint/checksum.h"

#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <vector>

#include "runtime/core/error.h"

namespace emox {
namespace {

std::string hex(XXH128_hash_t h) { return fmt::format("{:016x}{:016x}", h.high64, h.low64); }

struct FreeState {
  void operator()(XXH3_state_t* s) const { XXH3_freeState(s); }
};

}  // namespace

std::string checksum_of(const void* data, std::size_t bytes) { return hex(XXH3_128bits(data, bytes)); }

std::string checksum_of_file(const std::filesystem::path& path) {
  constexpr std::size_t kPiece = std::size_t{1} << 22;
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  require<IoError>(fd >= 0, "cannot open {}: {}", path.string(), std::strerror(errno));
  const std::unique_ptr<const int, void (*)(const int*)> closer(&fd, [](const int* f) { close(*f); });
  const std::unique_ptr<XXH3_state_t, FreeState> state(XXH3_createState());
  XXH3_128bits_reset(state.get());
  std::vector<char> piece(kPiece);
  for (;;) {
    const ssize_t n = read(fd, piece.data(), piece.size());
    if (n < 0 && errno == EINTR) continue;
    require<IoError>(n >= 0, "cannot read {}: {}", path.string(), std::strerror(errno));
    if (n == 0) return hex(XXH3_128bits_digest(state.get()));
    XXH3_128bits_update(state.get(), piece.data(), static_cast<std::size_t>(n));
  }
}

}  // namespace emox
