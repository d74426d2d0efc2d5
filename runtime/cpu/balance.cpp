#include "runtime/ops/balance.h"

#include <numeric>

#include "runtime/cpu/kernels.h"

namespace emox::cpu {

void balance_gradient(Context&, TensorView gradient, TensorView loss, TensorView counts, TensorView p_sum,
                      ops::BalanceOptions options) {
  const std::int64_t layers = counts.dim(0), experts = counts.dim(1);
  if (layers == 0) return;
  const auto* const count = counts.data<std::int64_t>();
  const auto* const p = p_sum.data<double>();
  auto* const out = gradient.data<float>();
  const double k = static_cast<double>(options.top_k), tokens = std::accumulate(count, count + experts, 0.0) / k;
  // Without a scored token the loss is a mean of nothing, and pulls at nothing.
  const double factor = tokens > 0 && options.divisor > 0 ? 1.0 / (tokens * options.divisor) : 0.0;
  const double scale = factor * options.weight / static_cast<double>(layers) * static_cast<double>(experts) / k;
  double sum = 0;
  for (std::int64_t i = 0; i < layers * experts; ++i) {
    const double g = scale * static_cast<double>(count[i]);
    sum += g * p[i];
    out[i] = static_cast<float>(g);
  }
  *loss.data<double>() += sum;
}

void move_selection_bias(Context&, TensorView bias, TensorView counts, double rate) {
  const std::int64_t layers = counts.dim(0), experts = counts.dim(1);
  const auto* count = counts.data<std::int64_t>();
  auto* b = bias.data<float>();
  for (std::int64_t l = 0; l < layers; ++l, count += experts, b += experts) {
    const std::int64_t total = std::accumulate(count, count + experts, std::int64_t{0});
    for (std::int64_t i = 0; i < experts; ++i) {
      const std::int64_t over =
          experts * count[i] - total;  // above the mean, in integers: as many stay put on any machine
      b[i] -= static_cast<float>(rate * (over > 0 ? 1 : over < 0 ? -1 : 0));
    }
  }
}

void add_counts(Context&, TensorView total, TensorView x) {
  auto* const y = total.data<std::int64_t>();
  const auto* const in = x.data<std::int64_t>();
  for (std::int64_t i = 0; i < x.numel(); ++i) y[i] += in[i];
}

void add_sum(Context&, TensorView total, TensorView x) {
  double& sum = *total.data<double>();
  const auto* const in = x.data<double>();
  for (std::int64_t i = 0; i < x.numel(); ++i) sum += in[i];
}

}  // namespace emox::cpu
