// Which source a sequence of the run belongs to, and which of that source's sequences it is: closed form, no state.
#pragma once

#include <cstdint>
#include <vector>

namespace emox {

/// sum_{i=0}^{n-1} floor((a i + b) / m), modulo 2^64, in O(log m) steps. n, m < 2^33; a, b < 2^34; m > 0.
std::uint64_t floor_sum(std::uint64_t n, std::uint64_t m, std::uint64_t a, std::uint64_t b);

/// The offset of a run's mixture.
std::uint32_t mixture_offset(std::uint64_t seed);

/// Sequence g is placed at x(g) = (g * 2654435769 + offset) mod 2^32, and source s owns the interval [bound_s,
/// bound_{s+1}) of [0, 2^32) whose length is its normalised weight. The multiplier is 2^32 over the golden ratio: the
/// points of any run of consecutive g are spread evenly (three-distance theorem), so every stretch of the run has the
/// mixture's proportions to within a few sequences; and it is odd, so 2^32 consecutive g meet every point once.
class Mixture {
 public:
  /// Weights are positive and finite; at least one. Throws UsageError if a source's share rounds to nothing.
  Mixture(const std::vector<double>& weights, std::uint32_t offset);

  /// The source of sequence g >= 0.
  int source_of(std::int64_t g) const;
  /// How many of the sequences 0 .. g - 1 belong to the source.
  std::int64_t count_before(std::int64_t g, int source) const;

 private:
  std::vector<std::uint64_t> bounds_;  ///< [sources + 1], from 0 to 2^32
  std::uint32_t offset_;
};

}  // namespace emox
