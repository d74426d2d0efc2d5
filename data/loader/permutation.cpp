#include "data/loader/permutation.h"

#include "runtime/core/error.h"

namespace emox {
namespace {
constexpr std::uint32_t kRounds = 6;
}  // namespace

Permutation::Permutation(const Philox& family, std::uint32_t stream, std::uint32_t epoch, std::int64_t n)
    : family_(family), stream_(stream), epoch_(epoch), n_(static_cast<std::uint64_t>(n)) {
  require<ShapeError>(n >= 1, "a permutation of {} elements", n);
  while (half_bits_ < 32 && (std::uint64_t{1} << (2 * half_bits_)) < n_) ++half_bits_;
}

std::uint64_t Permutation::once(std::uint64_t x) const {
  const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
  std::uint64_t left = x >> half_bits_;
  std::uint64_t right = x & mask;
  for (std::uint32_t round = 0; round < kRounds; ++round) {
    const std::uint64_t drawn = family_.words(static_cast<std::uint32_t>(right), round, epoch_, stream_)[0];
    const std::uint64_t mixed = left ^ (drawn & mask);
    left = right;
    right = mixed;
  }
  return (left << half_bits_) | right;
}

std::int64_t Permutation::operator()(std::int64_t i) const {
  auto x = static_cast<std::uint64_t>(i);
  do {
    x = once(x);
  } while (x >= n_);
  return static_cast<std::int64_t>(x);
}

}  // namespace emox
