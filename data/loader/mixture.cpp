#include "data/loader/mixture.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/rng/philox.h"

namespace emox {
namespace {

__extension__ using Wide = unsigned __int128;

constexpr std::uint64_t kModulus = std::uint64_t{1} << 32;
constexpr std::uint64_t kMultiplier = 2654435769;

}  // namespace

// Euclid's algorithm on the slope. Whole parts of a / m and b / m leave the sum directly; what remains counts the
// lattice points under the line y = (a i + b) / m, and reading that triangle along the other axis exchanges a and m.
std::uint64_t floor_sum(std::uint64_t n, std::uint64_t m, std::uint64_t a, std::uint64_t b) {
  std::uint64_t sum = 0;
  while (n > 0) {
    sum += static_cast<std::uint64_t>(Wide{n} * (n - 1) / 2 * (a / m)) + n * (b / m);
    a %= m;
    b %= m;
    const Wide top = Wide{a} * n + b;
    if (top < m) break;
    n = static_cast<std::uint64_t>(top / m);
    b = static_cast<std::uint64_t>(top % m);
    std::swap(m, a);
  }
  return sum;
}

std::uint32_t mixture_offset(std::uint64_t seed) { return Philox(seed, RngPurpose::DataMixture).words(0)[0]; }

Mixture::Mixture(const std::vector<double>& weights, std::uint32_t offset) : offset_(offset) {
  require<UsageError>(!weights.empty(),
                      "a data mixture needs at least one source: add data.source = label:weight:path");
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  double running = 0;
  bounds_.push_back(0);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    require<UsageError>(std::isfinite(weights[i]) && weights[i] > 0, "weight {} of source {} must be positive",
                        weights[i], i);
    running += weights[i];
    const double share = i + 1 == weights.size() ? 1.0 : running / total;
    const auto bound = static_cast<std::uint64_t>(std::llround(share * static_cast<double>(kModulus)));
    require<UsageError>(bound > bounds_.back(),
                        "weight {} of source {} is too small beside the total {}: it would never be read", weights[i],
                        i, total);
    bounds_.push_back(bound);
  }
}

int Mixture::source_of(std::int64_t g) const {
  const std::uint64_t x = (static_cast<std::uint64_t>(g) * kMultiplier + offset_) % kModulus;
  const auto above = std::upper_bound(bounds_.begin(), bounds_.end(), x);
  return static_cast<int>(above - bounds_.begin()) - 1;
}

// For 0 <= t <= M: [y mod M >= t] = floor((y + M - t) / M) - floor(y / M). The number of j < r with y_j = a j + offset
// in [low, high) modulo M is therefore the difference of two floor sums; wrapping modulo 2^64 cancels in it. Whole
// periods of M sequences contribute high - low each.
std::int64_t Mixture::count_before(std::int64_t g, int source) const {
  const std::uint64_t low = bounds_[idx(source)];
  const std::uint64_t high = bounds_[idx(source) + 1];
  const auto n = static_cast<std::uint64_t>(g);
  const std::uint64_t rest = n % kModulus;
  const std::uint64_t from_low = floor_sum(rest, kModulus, kMultiplier, offset_ + kModulus - low);
  const std::uint64_t from_high = floor_sum(rest, kModulus, kMultiplier, offset_ + kModulus - high);
  return static_cast<std::int64_t>(n / kModulus * (high - low) + (from_low - from_high));
}

}  // namespace emox
