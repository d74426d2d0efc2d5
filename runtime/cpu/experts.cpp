// An expert's products one after the other on the same rows. With one thread, or when the experts share out evenly over
// the threads, a task is a whole expert, the longest first; else each product is shared out by itself.
#include "runtime/ops/experts.h"

#include <algorithm>
#include <vector>

#include "runtime/core/idx.h"
#include "runtime/cpu/kernels.h"
#include "runtime/cpu/parallel.h"
#include "runtime/cpu/segments.h"

namespace emox::cpu {
namespace {

// Experts by falling rows, so that no long one starts last; those without rows are left out. Empty: no even shares.
std::vector<std::int64_t> whole_experts(const Context& ctx, const std::int64_t* at, std::int64_t experts) {
  std::vector<std::int64_t> order;
  for (std::int64_t e = 0; e < experts; ++e)
    if (at[e + 1] > at[e]) order.push_back(e);
  if (ctx.threads == 1 || order.empty()) return order;
  const auto rows = [&](std::int64_t e) { return at[e + 1] - at[e]; };
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) { return rows(a) > rows(b); });
  // What the longest task can leave unshared at the end, against a thread's share.
  constexpr std::int64_t kSharesATask = 4;
  return rows(order.front()) * ctx.threads * kSharesATask <= at[experts] ? order : std::vector<std::int64_t>{};
}

template <typename Body>
void each_expert(const Context& ctx, const std::vector<std::int64_t>& order, Body&& body) {
  Context alone = ctx;
  alone.threads = 1;
  alone.telemetry = nullptr;
  parallel_tasks(ctx, static_cast<std::int64_t>(order.size()), [&](std::int64_t task) {
    Context own = alone;
    body(own, order[idx(task)]);
  });
}

}  // namespace

void experts(Context& ctx, TensorView out, const ops::ExpertRows& rows, const ops::ExpertMatrices& weights) {
  const auto* at = checked_offsets("experts", rows.offsets, rows.in.dim(0));
  const std::vector<std::int64_t> order = whole_experts(ctx, at, weights.up.dim(0));
  if (order.empty()) {
    grouped_matmul_nt(ctx, rows.hidden, rows.in, weights.up, rows.offsets);
    swiglu(ctx, rows.activation, rows.hidden, rows.gates);
    grouped_matmul_nt(ctx, out, rows.activation, weights.down, rows.offsets);
    return;
  }
  each_expert(ctx, order, [&](Context& own, std::int64_t e) {
    const auto of = [&](const TensorView& x) { return x.rows(at[e], at[e + 1]); };
    matmul_nt(own, of(rows.hidden), of(rows.in), weights.up[e], 0.0F);
    swiglu(own, of(rows.activation), of(rows.hidden), of(rows.gates));
    matmul_nt(own, of(out), of(rows.activation), weights.down[e], 0.0F);
  });
}

void experts_backward(Context& ctx, TensorView drows, TensorView dgates, const ops::ExpertMatrices& gradients,
                      const ops::ExpertRows& rows, const ops::ExpertMatrices& weights, float beta) {
  const auto* at = checked_offsets("experts_backward", rows.offsets, rows.in.dim(0));
  const std::vector<std::int64_t> order = whole_experts(ctx, at, weights.up.dim(0));
  if (order.empty()) {
    grouped_matmul_nn(ctx, rows.activation, drows, weights.down, rows.offsets);
    swiglu_backward(ctx, rows.hidden, rows.activation, dgates, rows.activation, rows.hidden, rows.gates);
    grouped_matmul_tn(ctx, gradients.down, drows, rows.activation, rows.offsets, beta);
    grouped_matmul_tn(ctx, gradients.up, rows.hidden, rows.in, rows.offsets, beta);
    grouped_matmul_nn(ctx, drows, rows.hidden, weights.up, rows.offsets);
    return;
  }
  for (std::int64_t e = 0; e < weights.up.dim(0) && beta == 0.0F; ++e) {
    if (at[e + 1] > at[e]) continue;
    zero(ctx, gradients.up[e]);
    zero(ctx, gradients.down[e]);
  }
  each_expert(ctx, order, [&](Context& own, std::int64_t e) {
    const auto of = [&](const TensorView& x) { return x.rows(at[e], at[e + 1]); };
    const TensorView d = of(drows), hidden = of(rows.hidden), activation = of(rows.activation);
    matmul_nn(own, activation, d, weights.down[e], 0.0F);
    swiglu_backward(own, hidden, activation, of(dgates), activation, hidden, of(rows.gates));
    matmul_tn(own, gradients.down[e], d, activation, beta);
    matmul_tn(own, gradients.up[e], hidden, of(rows.in), beta);
    matmul_nn(own, d, hidden, weights.up[e], 0.0F);
  });
}

}  // namespace emox::cpu
