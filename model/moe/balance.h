// Load balancing (spec 2.2): from the experts' counts to the auxiliary loss, its gradient, the selection bias, and the
// figure that shows how even the load is. Counts are of routed experts, layer after layer: [layers * n_r].
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/transformer/config.h"

namespace emox {

/// This rank's part of LB = weight / layers * n_r / k_r * factor * sum_i C_i p_sum_i.
struct BalanceTerm {
  double loss = 0;
  std::vector<float> gradient;  ///< [layers * n_r] d LB / d p of each token, the same for all of them
};
/// p_sum[layers * n_r]: sums of p over this rank's tokens. `factor`: 1 / (tokens of the statistic * divisor of the
/// loss).
BalanceTerm balance_term(const ModelConfig& config, std::span<const std::int64_t> counts, std::span<const double> p_sum,
                         double factor);

/// DeepSeek's rule (balance = bias): an expert that was picked more often than its layer's mean becomes less attractive
/// by bias_rate, one that was picked less often more.
void move_selection_bias(const ModelConfig& config, std::span<float> bias, std::span<const std::int64_t> counts);

/// Picks of a layer's fullest expert over the mean, mean over the layers that have any.
double load_max_over_mean(const ModelConfig& config, std::span<const std::int64_t> counts);

}  // namespace emox
