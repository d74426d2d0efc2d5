#include "model/moe/balance.h"

#include <algorithm>
#include <numeric>

namespace emox {
namespace {

/// The counts of one layer.
std::span<const std::int64_t> of_layer(const ModelConfig& config, std::span<const std::int64_t> counts,
                                       std::int64_t layer) {
  const auto n = static_cast<std::size_t>(config.routed_experts());
  return counts.subspan(static_cast<std::size_t>(layer) * n, n);
}

}  // namespace

BalanceTerm balance_term(const ModelConfig& config, std::span<const std::int64_t> counts, std::span<const double> p_sum,
                         double factor) {
  const double scale = factor * config.balance_weight / static_cast<double>(config.layers) *
                       static_cast<double>(config.routed_experts()) / static_cast<double>(config.routed_top_k());
  BalanceTerm term;
  term.gradient.resize(counts.size());
  for (std::size_t i = 0; i < counts.size(); ++i) {
    const double g = scale * static_cast<double>(counts[i]);
    term.loss += g * p_sum[i];
    term.gradient[i] = static_cast<float>(g);
  }
  return term;
}

void move_selection_bias(const ModelConfig& config, std::span<float> bias, std::span<const std::int64_t> counts) {
  const auto n = static_cast<std::size_t>(config.routed_experts());
  for (std::int64_t l = 0; l < config.layers; ++l) {
    const auto layer = of_layer(config, counts, l);
    double mean = 0;
    for (const std::int64_t c : layer) mean += static_cast<double>(c) / static_cast<double>(n);
    for (std::size_t i = 0; i < n; ++i) {
      const double over = static_cast<double>(layer[i]) - mean;
      bias[static_cast<std::size_t>(l) * n + i] -= static_cast<float>(config.bias_rate * (over > 0   ? 1
                                                                                          : over < 0 ? -1
                                                                                                     : 0));
    }
  }
}

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
