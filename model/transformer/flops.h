// Floating-point operations of one training step: the matrix products that cannot be avoided.
#pragma once

#include <cstdint>
#include <span>

#include "model/transformer/config.h"

namespace emox {

/// 6 x (weights that a token meets) x tokens + attention counted as the causal half of each segment:
/// 6 L D n (n + 1). Forward and backward; nothing computed twice is counted twice.
inline double step_flops(const ModelConfig& c, std::int64_t tokens, std::span<const std::int32_t> attention_segments) {
  const auto d = static_cast<double>(c.d_model), layers = static_cast<double>(c.layers);
  const double feed_forward = c.is_moe() ? static_cast<double>(c.routed_experts()) * d +
                                               3.0 * static_cast<double>(c.top_k) * d * static_cast<double>(c.expert_ff)
                                         : 3.0 * d * static_cast<double>(c.dense_ff);
  const double per_token = layers * (4 * d * d + feed_forward) + static_cast<double>(c.vocab_size) * d;
  double attention = 0;
  for (std::size_t i = 0; i + 1 < attention_segments.size(); ++i) {
    const double n = attention_segments[i + 1] - attention_segments[i];
    attention += 6 * layers * d * n * (n + 1);
  }
  return 6 * per_token * static_cast<double>(tokens) + attention;
}

}  // namespace emox
