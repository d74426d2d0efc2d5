#include "model/transformer/config.h"

#include <fmt/format.h>

#include <string>

#include "runtime/core/error.h"

namespace emox {
namespace {

// The valid head counts around `heads`, for the message.
std::string nearest_heads(std::int64_t d_model, std::int64_t heads) {
  const auto valid = [&](std::int64_t h) { return h >= 1 && d_model % h == 0 && (d_model / h) % 2 == 0; };
  std::string text;
  for (std::int64_t h = heads - 1; h >= 1; --h)
    if (valid(h)) {
      text = std::to_string(h);
      break;
    }
  for (std::int64_t h = heads + 1; h <= d_model; ++h)
    if (valid(h)) {
      text += (text.empty() ? "" : " or ") + std::to_string(h);
      break;
    }
  return text;
}

}  // namespace

void ModelConfig::validate() const {
  require<UsageError>(d_model % 2 == 0, "model.d_model = {} is odd; rotary position needs an even width: try {} or {}",
                      d_model, d_model - 1, d_model + 1);
  require<UsageError>(
      d_model % heads == 0 && (d_model / heads) % 2 == 0,
      "model.heads = {} does not divide model.d_model = {} into even heads (got {} / {} = {:.4g}); the nearest "
      "valid model.heads is {}",
      heads, d_model, d_model, heads, static_cast<double>(d_model) / static_cast<double>(heads),
      nearest_heads(d_model, heads));
  require<UsageError>(is_moe() || dense_ff > 0,
                      "model.dense_ff = 0 leaves a dense model without a hidden layer; use 1 or more");
  if (!is_moe()) return;
  require<UsageError>(shared_experts < num_experts,
                      "moe.shared_experts = {} leaves no routed expert of moe.num_experts = {}; "
                      "use at most {}",
                      shared_experts, num_experts, num_experts - 1);
  require<UsageError>(top_k <= num_experts, "moe.top_k = {} is more than moe.num_experts = {}; use 1 to {}", top_k,
                      num_experts, num_experts);
  require<UsageError>(top_k > shared_experts,
                      "moe.top_k = {} counts the shared experts (moe.shared_experts = {}), so no routed "
                      "expert would be used; use {} to {}",
                      top_k, shared_experts, shared_experts + 1, num_experts);
  const std::int64_t k = routed_top_k();
  const auto pool_fits = [&](const char* key, std::int64_t value) {
    require<UsageError>(value >= k,
                        "moe.{} = {} is smaller than the {} routed experts that a token picks (moe.top_k {} - "
                        "moe.shared_experts {}); use at least {}",
                        key, value, k, top_k, shared_experts, k);
  };
  if (pool == PoolMode::Fixed) pool_fits("pool_size", pool_size);
  if (pool == PoolMode::Uniform) {
    pool_fits("pool_min", pool_min);
    require<UsageError>(pool_max >= pool_min, "moe.pool_max = {} is below moe.pool_min = {}; use {} to {}", pool_max,
                        pool_min, pool_min, num_experts);
  }
  const bool partial =
      pool_free_share > 0 || pool_free_tokens > 0 || pool_from_step > 0 || pool_until_step > 0 || pool_from_layer > 0;
  require<UsageError>(
      pool != PoolMode::Label || !partial,
      "moe.pool = label limits every token: moe.pool_free_share, pool_free_tokens, pool_from_step, pool_until_step "
      "and pool_from_layer are for pool = fixed and uniform; leave them out");
  require<UsageError>(
      pool_until_step == 0 || pool_until_step > pool_from_step,
      "moe.pool_until_step = {} leaves no step with pools after moe.pool_from_step = {}; use more, or 0",
      pool_until_step, pool_from_step);
  require<UsageError>(pool_from_layer < layers,
                      "moe.pool_from_layer = {} leaves no layer of model.layers = {} with pools; use at most {}",
                      pool_from_layer, layers, layers - 1);
  if (eval_pool != 0) pool_fits("eval_pool", eval_pool);
}

}  // namespace emox
