// How large each document's pool is, and which experts a label pool holds (spec 3.3).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "model/transformer/batch.h"
#include "model/transformer/config.h"

namespace emox {

/// Pool sizes of documents. Tests replace it to play back recorded draws.
class PoolSizes {
 public:
  virtual ~PoolSizes() = default;
  /// Routed experts in the pool of `document` in layer `layer` at step `step`; the number of routed experts or more
  /// means no restriction.
  virtual std::int64_t size(std::int64_t step, std::int64_t layer, const PoolDocument& document) const = 0;
  /// Whether some tokens are without the limit of their document.
  virtual bool frees_tokens() const { return false; }
  /// Whether the token at `position` of the document's sequence is one. It picks from all routed experts; its
  /// document's pool is computed from all tokens, this one included.
  virtual bool is_free(std::int64_t, std::int64_t, const PoolDocument&, std::int64_t) const { return false; }
};

/// The same size everywhere, as in evaluation.
std::unique_ptr<PoolSizes> fixed_pool_sizes(std::int64_t size);

/// The draws of a training run: fixed, or uniform on [pool_min, pool_max] keyed by (seed, step, layer, sequence,
/// document), so that no mesh and no resume changes them. Without a limit: steps before pool_from_step and from
/// pool_until_step on (0: none), layers below pool_from_layer, and pool_free_share of the documents, in all layers.
/// Of the other documents, pool_free_tokens of the tokens are free: keyed by (seed, step, layer, sequence, position).
std::unique_ptr<PoolSizes> make_pool_sizes(const ModelConfig& config, std::uint64_t seed);

/// Who draws the pools of a pass.
struct PoolPlan {
  const PoolSizes* sizes = nullptr;                     ///< and tokens that are free of them; null: no pools
  const std::vector<std::uint8_t>* by_label = nullptr;  ///< [labels * n_r]: overrides sizes
  std::int64_t step = 0;
};
/// All that a micro-batch's pools need on a device, for DeviceBatch::upload.
DrawnPools draw_pools(const ModelConfig& config, const std::vector<PoolDocument>& documents, const PoolPlan& plan);

/// Label pools (the BTX / FlexOlmo idea, a baseline): routed experts divided over the labels in order, as evenly as
/// they go. Row `label` of the result, n_r bytes: 1 where the expert belongs to the label.
/// Throws UsageError when a label would get fewer experts than a token picks.
std::vector<std::uint8_t> label_pools(std::int64_t routed_experts, std::int64_t routed_top_k, std::int64_t labels);

}  // namespace emox
