// How many tokens' logits lm_head_loss holds at once.
#pragma once

#include <algorithm>
#include <cstdint>

namespace emox::cpu {

/// At most 16 MiB of logits, but at least 512 tokens: every block reads and adds to the whole matrix of the vocabulary,
/// which for a large one takes longer than the products of few tokens.
inline std::int64_t loss_block_rows(std::int64_t tokens, std::int64_t vocab) {
  const std::int64_t fit = (std::int64_t{4} << 20) / std::max<std::int64_t>(vocab, 1);
  return std::clamp<std::int64_t>(tokens, 0, std::clamp<std::int64_t>(fit, 512, 1024));
}

}  // namespace emox::cpu
