#include "runtime/rng/philox.h"

namespace emox {
namespace {
__extension__ using Wide = unsigned __int128;
}  // namespace

PhiloxCounter philox4x32(PhiloxCounter c, PhiloxKey k) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53} * c[0];
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ k[0], static_cast<std::uint32_t>(p1),
         static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ k[1], static_cast<std::uint32_t>(p0)};
    k[0] += 0x9E3779B9u;
    k[1] += 0xBB67AE85u;
  }
  return c;
}

Philox::Philox(std::uint64_t seed, RngPurpose purpose) {
  // The purpose is mixed in by one more Philox call, so that neighbouring seeds and purposes share no key.
  const PhiloxCounter m = philox4x32({static_cast<std::uint32_t>(purpose), 0, 0, 0},
                                     {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
  key_ = {m[0], m[1]};
}

std::int64_t Philox::uniform_int(std::int64_t low, std::int64_t high, PhiloxCounter at) const {
  const PhiloxCounter w = philox4x32(at, key_);
  const auto span = static_cast<std::uint64_t>(high - low) + 1;
  const std::uint64_t x = (std::uint64_t{w[0]} << 32) | w[1];
  return low + static_cast<std::int64_t>((static_cast<Wide>(x) * span) >> 64);
}

double Philox::uniform(PhiloxCounter at) const {
  const PhiloxCounter w = philox4x32(at, key_);
  const std::uint64_t x = ((std::uint64_t{w[0]} << 32) | w[1]) >> 11;
  return (static_cast<double>(x) + 0.5) * 0x1.0p-53;
}

}  // namespace emox
