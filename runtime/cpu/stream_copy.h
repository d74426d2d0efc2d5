// Copies of more than a cache holds.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace emox::cpu {

/// From how many bytes on a copy is streamed: less may still be in a core's cache when it is read.
inline constexpr std::int64_t kStreamedCopy = std::int64_t{16} << 20;

/// As memcpy, but the copy bypasses the caches: its lines are not read before they are overwritten, which takes a third
/// of the traffic away. The C library does so only beyond a size that grows with the cache of the whole processor.
inline void stream_copy(char* to, const char* from, std::size_t bytes) {
#ifdef __SSE2__
  constexpr std::size_t kLine = 64;
  const std::size_t head = std::min(bytes, (kLine - reinterpret_cast<std::uintptr_t>(to) % kLine) % kLine);
  std::memcpy(to, from, head);
  std::size_t at = head;
  for (; at + kLine <= bytes; at += kLine)
    for (std::size_t i = 0; i < kLine; i += sizeof(__m128i))
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + at + i),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at + i)));
  std::memcpy(to + at, from + at, bytes - at);
  _mm_sfence();  // before another thread reads it
#else
  std::memcpy(to, from, bytes);
#endif
}

}  // namespace emox::cpu
