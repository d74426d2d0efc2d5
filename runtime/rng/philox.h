// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//
// A draw is a pure function of (seed, purpose, step, layer, sequence, document or position), so it does not depend on
// how many ranks there are or on what was drawn before (design 4.6).
#pragma once

#include <array>
#include <cstdint>

namespace emox {

/// What a draw is for. The values are part of the reproducibility contract: never renumber.
enum class RngPurpose : std::uint32_t {
  Init = 1,
  PoolSize = 2,
  DataOrder = 3,
  Placement = 4,
  Test = 5,
  DataMixture = 6,
  ExpertSelection = 7,
  Calibration = 8,
  Shuffle = 9,
  FreeDocument = 10,
  FreeToken = 11
};

using PhiloxCounter = std::array<std::uint32_t, 4>;
using PhiloxKey = std::array<std::uint32_t, 2>;

/// Ten rounds of Philox on one counter: four independent 32-bit words.
PhiloxCounter philox4x32(PhiloxCounter counter, PhiloxKey key);

/// A family of draws: the seed and the purpose are the key, the four coordinates of a draw the counter.
class Philox {
 public:
  Philox(std::uint64_t seed, RngPurpose purpose);
  PhiloxCounter words(std::uint32_t a, std::uint32_t b = 0, std::uint32_t c = 0, std::uint32_t d = 0) const {
    return philox4x32({a, b, c, d}, key_);
  }
  /// Uniform integer in [low, high], both included, without the bias of a plain remainder beyond 2^-32.
  std::int64_t uniform_int(std::int64_t low, std::int64_t high, PhiloxCounter at) const;
  /// Uniform in (0, 1), 53 bits.
  double uniform(PhiloxCounter at) const;

 private:
  PhiloxKey key_;
};

}  // namespace emox
