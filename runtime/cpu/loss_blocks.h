// How lm_head_loss cuts its logits: tokens in blocks, words in pieces.
#pragma once

#include <algorithm>
#include <cstdint>

namespace emox::cpu {

/// At most 16 MiB of logits, but at least 512 tokens: every block reads and adds to the whole matrix of the vocabulary,
/// which for a large one takes longer than the products of few tokens.
inline std::int64_t loss_block_rows(std::int64_t tokens, std::int64_t vocab) {
  const std::int64_t rows = (std::int64_t{4} << 20) / std::max<std::int64_t>(vocab, 1);
  return std::clamp<std::int64_t>(tokens, 0, std::clamp<std::int64_t>(rows, 512, 1024));
}

/// Words of one piece: of 512 tokens they fit the cache.
inline constexpr std::int64_t kLossWords = 4096;

/// Floats from one token's logits in a piece to the next one's. Not a power of two, of which the rows that a product
/// reads at once would fall into the same few lines of the cache.
inline std::int64_t loss_row(std::int64_t vocab) { return vocab > kLossWords ? kLossWords + 16 : vocab; }

/// Floats of scratch.
inline std::int64_t loss_scratch_floats(std::int64_t tokens, std::int64_t vocab) {
  const std::int64_t pieces = (vocab + kLossWords - 1) / kLossWords;
  return loss_block_rows(tokens, vocab) * pieces * loss_row(vocab);
}

}  // namespace emox::cpu
