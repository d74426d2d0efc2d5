#include "model/moe/balance.h"

#include <algorithm>
#include <numeric>

#include "runtime/core/idx.h"

namespace emox {
namespace {

/// The counts of one layer.
std::span<const std::int64_t> of_layer(const ModelConfig& config, std::span<const std::int64_t> counts,
                                       std::int64_t layer) {
  const auto n = idx(config.routed_experts());
  return counts.subspan(idx(layer) * n, n);
}

}  // namespace

double load_max_over_mean(const ModelConfig& config, std::span<const std::int64_t> counts) {
  double load = 0;
  for (std::int64_t l = 0; l < config.layers; ++l) {
    const auto layer = of_layer(config, counts, l);
    const double sum = std::accumulate(layer.begin(), layer.end(), 0.0);
    if (sum > 0)
      load += static_cast<double>(*std::max_element(layer.begin(), layer.end())) *
              static_cast<double>(config.routed_experts()) / sum / static_cast<double>(config.layers);
  }
  return load;
}

}  // namespace emox
