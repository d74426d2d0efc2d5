#include "model/optim/optimizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "runtime/ops/basic.h"
#include "runtime/ops/optim.h"

namespace emox {
namespace {

double norm_of(Context& ctx, TensorView x) {
  const Tensor sum(ctx.device, DType::F64, {1});
  ops::sum_of_squares(ctx, sum, x);
  return std::sqrt(ops::to_host<double>(ctx, sum)[0]);
}

}  // namespace

double gradient_norm(Context& ctx, const ParameterStore& store) {
  return norm_of(ctx, store.grad(store.flat(0, store.flat_size())));
}

double clip_factor(double norm, double clip_norm) {
  return clip_norm > 0 ? std::min(1.0, clip_norm / (norm + 1e-6)) : 1.0;
}

void update_parameters(Context& ctx, const ParameterStore& store, const AdamWConfig& config, double learning_rate,
                       double grad_scale, std::int64_t step) {
  for (const ParameterStore::Run& run : store.runs()) {
    const ParameterSlot slot = store.flat(run.begin, run.end);
    ops::adamw(ctx, store.weight(slot), store.grad(slot), store.exp_avg(slot), store.exp_avg_sq(slot),
               {learning_rate, config.beta1, config.beta2, config.eps, run.decay ? config.weight_decay : 0.0,
                grad_scale, step});
  }
}

std::string describe_non_finite(Context& ctx, const ParameterStore& store) {
  std::string weights, gradients;
  int bad_weights = 0, bad_gradients = 0;
  for (const NamedParameter& p : store.named()) {
    if (!std::isfinite(norm_of(ctx, store.weight(p.slot))) && bad_weights++ == 0) weights = p.name;
    const double g = norm_of(ctx, store.grad(p.slot));
    if (!std::isfinite(g) && bad_gradients++ == 0) gradients = fmt::format("{} ({})", p.name, g);
  }
  if (bad_weights > 0)
    return fmt::format("{} of {} weight tensors hold non-finite numbers, the first is {}", bad_weights,
                       store.named().size(), weights);
  if (bad_gradients > 0)
    return fmt::format("all weights are finite; the gradient norm of {} of {} tensors is not, the first is {}",
                       bad_gradients, store.named().size(), gradients);
  return "all weights and gradients are finite";
}

}  // namespace emox
