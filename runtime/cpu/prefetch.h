// Asking for memory before it is needed. One core alone reaches the memory's rate only with many lines on their way;
// the processor's own guesses end at every page of 4 KiB and know nothing of rows that an index picks.
#pragma once

#include <cstdint>

namespace emox::cpu {

/// Floats of one cache line, and what the loops below handle between two requests.
inline constexpr std::int64_t kLine = 16, kStretch = 4 * kLine;
/// How far ahead, in floats: two pages. Nearer ones come too late, much farther ones may be gone again.
inline constexpr std::int64_t kAhead = 2048;

/// Asks for n floats that will be read. Any address will do: one that is not there is not fetched.
inline void fetch_to_read(const float* p, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += kLine) __builtin_prefetch(p + i, 0, 2);
}
/// Asks for n floats that will be written.
inline void fetch_to_write(float* p, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += kLine) __builtin_prefetch(p + i, 1, 2);
}

}  // namespace emox::cpu
