// Global norm, clipping and AdamW over a ParameterStore (spec 4).
#pragma once

#include <cstdint>
#include <string>

#include "model/transformer/parameter_store.h"
#include "runtime/core/context.h"

namespace emox {

struct AdamWConfig {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double weight_decay = 0.1;  ///< of every parameter but the input embedding
  double clip_norm = 1.0;     ///< 0: no clipping
};

/// L2 norm of all gradients, accumulated in double.
double gradient_norm(Context& ctx, const ParameterStore& store);

/// The factor of clipping: min(1, clip / (norm + 1e-6)).
double clip_factor(double norm, double clip_norm);

/// One update of all parameters. `step` counts from 1; gradients are multiplied by `grad_scale`.
void update_parameters(Context& ctx, const ParameterStore& store, const AdamWConfig& config, double learning_rate,
                       double grad_scale, std::int64_t step);

/// Where non-finite numbers are, in words: the parameters whose weights or gradients have them, first ones first.
std::string describe_non_finite(Context& ctx, const ParameterStore& store);

}  // namespace emox
