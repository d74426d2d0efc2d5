// A keyed pseudo-random permutation of [0, n) that is computed, not stored.
#pragma once

#include <cstdint>

#include "runtime/rng/philox.h"

namespace emox {

/// A Feistel network on the smallest even number of bits that holds n - 1, its round function a Philox draw; outputs
/// beyond n are fed back (cycle walking) until one falls inside, at most four times on average. A Feistel network is a
/// bijection whatever its round function, and walking a bijection's cycles keeps it one on the subset.
class Permutation {
 public:
  /// n >= 1. Two (stream, epoch) pairs give unrelated permutations of the same family.
  Permutation(const Philox& family, std::uint32_t stream, std::uint32_t epoch, std::int64_t n);
  /// The image of i, 0 <= i < n.
  std::int64_t operator()(std::int64_t i) const;

 private:
  std::uint64_t once(std::uint64_t x) const;
  const Philox& family_;
  std::uint32_t stream_, epoch_;
  std::uint64_t n_;
  int half_bits_ = 1;
};

}  // namespace emox
