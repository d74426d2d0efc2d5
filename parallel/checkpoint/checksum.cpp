#include "parallel/checkpoint/checksum.h"

#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <memory>
#include <vector>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/files/file_error.h"
#include "runtime/files/files.h"

namespace emox {
namespace {

std::string hex(XXH128_hash_t h) { return fmt::format("{:016x}{:016x}", h.high64, h.low64); }

}  // namespace

void Checksum::Free::operator()(XXH3_state_s* state) const { XXH3_freeState(state); }

Checksum::Checksum() : state_(XXH3_createState()) {
  require(state_ != nullptr, "out of memory: no room for the state of a checksum");
  XXH3_128bits_reset(state_.get());
}

void Checksum::update(const void* data, std::size_t bytes) {
  if (bytes != 0) XXH3_128bits_update(state_.get(), data, bytes);
}

std::string Checksum::hex() const { return emox::hex(XXH3_128bits_digest(state_.get())); }

std::string checksum_of(const void* data, std::size_t bytes) { return hex(XXH3_128bits(data, bytes)); }

std::string checksum_of_file(const std::filesystem::path& path) {
  // Small enough to stay in a core's cache between the read and the sum.
  constexpr std::size_t kPiece = std::size_t{1} << 19;
  const FileDescriptor file(path, O_RDONLY);
  Checksum checksum;
  std::vector<char> piece(kPiece);
  for (;;) {
    const ssize_t n = read(file.get(), piece.data(), piece.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_to_read("read", path, errno);
    if (n == 0) return checksum.hex();
    checksum.update(piece.data(), idx(n));
  }
}

}  // namespace emox
