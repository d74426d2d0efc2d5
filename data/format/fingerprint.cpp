#include "data/format/fingerprint.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <memory>
#include <string_view>
#include <vector>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

constexpr std::string_view kWhole = "xxh3-128:";
constexpr std::string_view kSample = "xxh3-128-sample:";

struct FreeState {
  void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
};

class Hash {
 public:
  Hash() : state_(XXH3_createState()) {
    require(state_ != nullptr, "out of memory: no room for the state of a checksum");
    XXH3_128bits_reset(state_.get());
  }
  void update(const void* data, std::size_t bytes) { XXH3_128bits_update(state_.get(), data, bytes); }
  std::string text(std::string_view kind) const {
    const XXH128_hash_t h = XXH3_128bits_digest(state_.get());
    return fmt::format("{}{:016x}{:016x}", kind, h.high64, h.low64);
  }

 private:
  std::unique_ptr<XXH3_state_t, FreeState> state_;
};

}  // namespace

std::string whole_fingerprint_of(const StoredFile& file, std::int64_t offset, const StretchObserver& observer) {
  constexpr std::int64_t kPiece = 1 << 20;
  const std::int64_t bytes = file.bytes() - offset;
  std::vector<std::byte> buffer(idx(std::min(bytes, kPiece)));
  Hash hash;
  for (std::int64_t at = 0; at < bytes; at += kPiece) {
    const std::span<std::byte> piece(buffer.data(), idx(std::min(kPiece, bytes - at)));
    file.read(offset + at, piece);
    hash.update(piece.data(), piece.size());
    if (observer) observer(at, piece);
  }
  return hash.text(kWhole);
}

std::string fingerprint_of(const StoredFile& file, std::int64_t offset, const StretchObserver& observer) {
  const std::int64_t bytes = file.bytes() - offset;
  if (bytes <= kWholeFingerprintBytes) return whole_fingerprint_of(file, offset, observer);
  constexpr std::int64_t kStretches = 32, kStretch = 1 << 16;
  std::vector<std::byte> stretch(kStretch);
  Hash hash;
  hash.update(&bytes, sizeof bytes);
  for (std::int64_t i = 0; i < kStretches; ++i) {
    // The last one ends with the last byte; all begin at a multiple of the largest element but that one.
    const std::int64_t last = bytes - kStretch;
    const std::int64_t at = i + 1 == kStretches ? last : last / (kStretches - 1) * i / 8 * 8;
    file.read(offset + at, stretch);
    hash.update(stretch.data(), stretch.size());
    if (observer) observer(at, stretch);
  }
  return hash.text(kSample);
}

bool is_whole_fingerprint(const std::string& fingerprint) { return fingerprint.starts_with(kWhole); }

}  // namespace emox
