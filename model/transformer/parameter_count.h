// How many parameters a model has, and how many of them a token meets: in closed form, without building it.
#pragma once

#include <cstdint>

#include "model/transformer/config.h"

namespace emox {

struct ParameterCount {
  std::int64_t total = 0;
  std::int64_t active = 0;               ///< of these, what a token meets: top_k of num_experts; the router, whole
  std::int64_t active_feed_forward = 0;  ///< of these, feed-forward matrices: the router is none
};

inline ParameterCount count_parameters(const ModelConfig& c) {
  const std::int64_t d = c.d_model;
  const std::int64_t outside = 2 * c.vocab_size * d + d + c.layers * (4 * d * d + 2 * d);
  const auto of_width = [&](std::int64_t width) { return c.layers * 3 * d * width; };
  if (!c.is_moe()) return {outside + of_width(c.dense_ff), outside + of_width(c.dense_ff), of_width(c.dense_ff)};
  const std::int64_t router = c.layers * c.num_experts * d, active = of_width(c.top_k * c.expert_ff);
  return {outside + router + of_width(c.num_experts * c.expert_ff), outside + router + active, active};
}

}  // namespace emox
