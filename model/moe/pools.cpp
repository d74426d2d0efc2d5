#include "model/moe/pools.h"

#include <algorithm>
#include <utility>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/rng/philox.h"

namespace emox {
namespace {

class FixedPools final : public PoolSizes {
 public:
  explicit FixedPools(std::int64_t size) : size_(size) {}
  std::int64_t size(std::int64_t, std::int64_t, const PoolDocument&) const override { return size_; }

 private:
  std::int64_t size_;
};

class UniformPools final : public PoolSizes {
 public:
  UniformPools(std::uint64_t seed, std::int64_t low, std::int64_t high)
      : philox_(seed, RngPurpose::PoolSize), low_(low), high_(high) {}
  std::int64_t size(std::int64_t step, std::int64_t layer, const PoolDocument& d) const override {
    return philox_.uniform_int(low_, high_,
                               {static_cast<std::uint32_t>(step), static_cast<std::uint32_t>(layer),
                                static_cast<std::uint32_t>(d.sequence), static_cast<std::uint32_t>(d.document)});
  }

 private:
  Philox philox_;
  std::int64_t low_, high_;
};

/// Leaves steps, layers and documents without a limit.
class PartialPools final : public PoolSizes {
 public:
  PartialPools(std::unique_ptr<PoolSizes> sizes, const ModelConfig& config, std::uint64_t seed)
      : sizes_(std::move(sizes)), config_(config), philox_(seed, RngPurpose::FreeDocument) {}
  std::int64_t size(std::int64_t step, std::int64_t layer, const PoolDocument& d) const override {
    const bool ended = config_.pool_until_step != 0 && step >= config_.pool_until_step;
    if (step < config_.pool_from_step || ended || layer < config_.pool_from_layer) return config_.routed_experts();
    // One draw for all layers: a document is free as a whole or not at all.
    const double drawn = philox_.uniform({static_cast<std::uint32_t>(step), 0, static_cast<std::uint32_t>(d.sequence),
                                          static_cast<std::uint32_t>(d.document)});
    const bool free = drawn < config_.pool_free_share;
    return free ? config_.routed_experts() : sizes_->size(step, layer, d);
  }

 private:
  std::unique_ptr<PoolSizes> sizes_;
  ModelConfig config_;
  Philox philox_;
};

/// Lets a share of the tokens pick outside of their document's pool, in each layer others.
class FreeTokens final : public PoolSizes {
 public:
  FreeTokens(std::unique_ptr<PoolSizes> sizes, double share, std::uint64_t seed)
      : sizes_(std::move(sizes)), share_(share), philox_(seed, RngPurpose::FreeToken) {}
  std::int64_t size(std::int64_t step, std::int64_t layer, const PoolDocument& d) const override {
    return sizes_->size(step, layer, d);
  }
  bool frees_tokens() const override { return true; }
  bool is_free(std::int64_t step, std::int64_t layer, const PoolDocument& d, std::int64_t position) const override {
    return philox_.uniform({static_cast<std::uint32_t>(step), static_cast<std::uint32_t>(layer),
                            static_cast<std::uint32_t>(d.sequence), static_cast<std::uint32_t>(position)}) < share_;
  }

 private:
  std::unique_ptr<PoolSizes> sizes_;
  double share_;
  Philox philox_;
};

}  // namespace

std::unique_ptr<PoolSizes> fixed_pool_sizes(std::int64_t size) { return std::make_unique<FixedPools>(size); }

std::unique_ptr<PoolSizes> make_pool_sizes(const ModelConfig& config, std::uint64_t seed) {
  std::unique_ptr<PoolSizes> sizes;
  if (config.pool == PoolMode::Uniform)
    sizes = std::make_unique<UniformPools>(seed, config.pool_min, config.pool_max);
  else
    sizes = fixed_pool_sizes(config.pool == PoolMode::Fixed ? config.pool_size : config.routed_experts());
  const bool partial = config.pool_free_share > 0 || config.pool_from_step > 0 || config.pool_until_step > 0 ||
                       config.pool_from_layer > 0;
  if (partial) sizes = std::make_unique<PartialPools>(std::move(sizes), config, seed);
  if (config.pool_free_tokens > 0)
    sizes = std::make_unique<FreeTokens>(std::move(sizes), config.pool_free_tokens, seed);
  return sizes;
}

std::vector<std::uint8_t> label_pools(std::int64_t routed_experts, std::int64_t routed_top_k, std::int64_t labels) {
  require<UsageError>(
      labels >= 1 && routed_experts / labels >= routed_top_k,
      "moe.pool = label divides {} routed experts over {} data labels, {} for the smallest, but a token picks {}; "
      "use at most {} labels, or moe.num_experts with at least {} routed experts",
      routed_experts, labels, labels < 1 ? 0 : routed_experts / labels, routed_top_k, routed_experts / routed_top_k,
      labels * routed_top_k);
  std::vector<std::uint8_t> pool(idx(labels * routed_experts), 0);
  for (std::int64_t l = 0; l < labels; ++l)
    for (std::int64_t e = routed_experts * l / labels; e < routed_experts * (l + 1) / labels; ++e)
      pool[idx(l * routed_experts + e)] = 1;
  return pool;
}

DrawnPools draw_pools(const ModelConfig& config, const std::vector<PoolDocument>& documents, const PoolPlan& plan) {
  DrawnPools drawn;
  if (!config.is_moe() || (plan.sizes == nullptr && plan.by_label == nullptr)) return drawn;
  const std::int64_t n = config.routed_experts();
  drawn.layers = config.layers;
  if (plan.by_label != nullptr) {
    for (const PoolDocument& d : documents) {
      const auto row = plan.by_label->begin() + d.domain * n;
      drawn.masks.insert(drawn.masks.end(), row, row + n);
    }
    return drawn;
  }
  for (std::int64_t layer = 0; layer < config.layers; ++layer)
    for (const PoolDocument& d : documents) {
      drawn.sizes.push_back(static_cast<std::int32_t>(std::min(n, plan.sizes->size(plan.step, layer, d))));
      if (!plan.sizes->frees_tokens()) continue;
      for (std::int64_t i = d.position; i < d.position + d.tokens; ++i)
        drawn.free_tokens.push_back(plan.sizes->is_free(plan.step, layer, d, i) ? 1 : 0);
    }
  return drawn;
}

}  // namespace emox
