#include "model/layers/feed_forward.h"

#include "runtime/ops/layers.h"
#include "runtime/ops/matmul.h"

namespace emox {

FeedForward::FeedForward(std::int64_t d_model, std::int64_t d_ff, const std::string& name_prefix, ParameterStore& store)
    : d_ff_(d_ff), up_(store.reserve({2 * d_ff, d_model})), down_(store.reserve({d_model, d_ff})) {
  store.name(name_prefix + "gate_proj.weight", up_.rows(0, d_ff));
  store.name(name_prefix + "up_proj.weight", up_.rows(d_ff, 2 * d_ff));
  store.name(name_prefix + "down_proj.weight", down_);
}

void FeedForward::forward_add(Context& ctx, TensorView y, const Rows& rows, const ParameterStore& store) const {
  const auto& [x, hidden, activation] = rows;
  ops::matmul_nt(ctx, hidden, x, store.weight(up_));
  ops::swiglu(ctx, activation, hidden, {});
  ops::matmul_nt(ctx, y, activation, store.weight(down_), 1.0F);
}

void FeedForward::backward(Context& ctx, TensorView dx, float beta, TensorView dy, const Rows& rows,
                           const ParameterStore& store) const {
  const auto& [x, hidden, activation] = rows;
  ops::matmul_nn(ctx, activation, dy, store.weight(down_));
  ops::swiglu_backward(ctx, hidden, activation, {}, activation, hidden, {});
  ops::matmul_tn(ctx, store.grad(down_), dy, activation, 1.0F);
  ops::matmul_tn(ctx, store.grad(up_), hidden, x, 1.0F);
  ops::matmul_nn(ctx, dx, hidden, store.weight(up_), beta);
}

}  // namespace emox
