// How lm_head_loss cuts its logits on a device: tokens in blocks.
#pragma once

#include <algorithm>
#include <cstdint>

namespace emox::cuda {

inline constexpr std::int64_t kMostLossRows = 4096;

/// Tokens in blocks of one length, of at most so many: enough for products at full speed, of which each reads the whole
/// matrix of the vocabulary, and adds to all of its gradient.
inline std::int64_t loss_block_rows(std::int64_t tokens) {
  constexpr std::int64_t kMultiple = 128;
  const std::int64_t blocks = std::max<std::int64_t>((tokens + kMostLossRows - 1) / kMostLossRows, 1);
  return std::min(tokens, ((tokens + blocks - 1) / blocks + kMultiple - 1) / kMultiple * kMultiple);
}

/// Floats from one token's logits to the next one's: rows begin at multiples of 32 bytes.
inline std::int64_t loss_row(std::int64_t vocab) { return (vocab + 7) / 8 * 8; }

/// Floats of scratch: enough for any smaller number of tokens, whose blocks may be longer.
inline std::int64_t loss_scratch_floats(std::int64_t tokens, std::int64_t vocab) {
  return std::min(tokens, kMostLossRows) * loss_row(vocab);
}

}  // namespace emox::cuda
