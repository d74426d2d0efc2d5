// How even the load is (spec 2.2). Loss, gradient and bias are ops: runtime/ops/balance.h.
#pragma once

#include <cstdint>
#include <span>

#include "model/transformer/config.h"

namespace emox {

/// Picks of a layer's fullest expert over the mean, mean over the layers (0 for one without picks). Counts are of
/// routed experts, layer after layer: [layers * n_r].
double load_max_over_mean(const ModelConfig& config, std::span<const std::int64_t> counts);

}  // namespace emox
