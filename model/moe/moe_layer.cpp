#include "model/moe/moe_layer.h"

#include <fmt/format.h>

#include <algorithm>

#include "runtime/core/error.h"
#include "runtime/ops/basic.h"
#include "runtime/ops/layers.h"
#include "runtime/ops/matmul.h"
#include "runtime/telemetry/spans.h"

namespace emox {

MoeLayer::MoeLayer(const ModelConfig& config, std::int64_t layer, ParameterStore& store)
    : config_(config),
      layer_(layer),
      dispatcher_(make_local_dispatcher(config.routed_experts(), config.routed_top_k())) {
  const std::string prefix = fmt::format("model.layers.{}.mlp.", layer);
  const std::int64_t d = config.d_model, f = config.expert_ff, routed = config.routed_experts();
  router_ = store.reserve({config.num_experts, d});
  up_ = store.reserve({routed, 2 * f, d});
  down_ = store.reserve({routed, d, f});
  store.name(prefix + "gate.weight", router_);
  for (std::int64_t e = 0; e < routed; ++e) {
    const std::string expert = fmt::format("{}experts.{}.", prefix, e);
    store.name(expert + "gate_proj.weight", up_[e].rows(0, f));
    store.name(expert + "up_proj.weight", up_[e].rows(f, 2 * f));
    store.name(expert + "down_proj.weight", down_[e]);
  }
  for (std::int64_t e = routed; e < config.num_experts; ++e)
    shared_.emplace_back(d, f, fmt::format("{}experts.{}.", prefix, e), store);
}

MoeLayer::Saved MoeLayer::reserve(Arena& arena, std::int64_t tokens) const {
  const std::int64_t n = config_.routed_experts(), k = config_.routed_top_k(), d = config_.d_model,
                     f = config_.expert_ff;
  const std::int64_t rows = dispatcher_->max_rows(tokens);
  Saved s;
  s.route = {arena.f32({tokens, n}), arena.f32({tokens}), arena.i32({tokens, k}), arena.f32({tokens, k})};
  s.handle = dispatcher_->reserve(arena, tokens);
  s.rows = arena.f32({rows, d});
  s.row_gates = arena.f32({rows});
  s.hidden = arena.f32({rows, 2 * f});
  s.shared_hidden = arena.f32({config_.shared_experts * tokens, 2 * f});
  return s;
}

MoeLayer::Scratch MoeLayer::reserve_scratch(Arena& arena, std::int64_t tokens) const {
  const std::int64_t n = config_.routed_experts(), k = config_.routed_top_k();
  const std::int64_t rows = dispatcher_->max_rows(tokens);
  return {arena.f32({tokens, n}),
          arena.f32({tokens, n}),
          arena.allocate(DType::U8, {tokens, n}),
          arena.i32({tokens}),
          arena.f32({std::max(rows, tokens), config_.expert_ff}),
          arena.f32({rows, config_.d_model}),
          arena.f32({rows}),
          arena.f32({tokens, k})};
}

ops::TopkResult MoeLayer::cut(const Saved& s, std::int64_t t) const {
  return {s.route.p.rows(0, t), s.route.lse.rows(0, t), s.route.ids.rows(0, t), s.route.gates.rows(0, t)};
}

void MoeLayer::route(Context& ctx, TensorView x, const Saved& saved, const Scratch& scratch, const DeviceBatch& batch,
                     const std::vector<PoolDocument>& documents, const PoolPlan& pools, TensorView selection_bias,
                     const ParameterStore& store) const {
  const std::int64_t t = batch.tokens(), n = config_.routed_experts(),
                     docs = static_cast<std::int64_t>(documents.size());
  const TensorView logits = scratch.logits.rows(0, t);
  const ops::TopkResult out = cut(saved, t);
  ops::matmul_nt(ctx, logits, x, store.weight(router_).rows(0, n));
  TensorView pool;
  if (pools.by_label != nullptr) {
    pool = scratch.pool.rows(0, docs);
    std::vector<std::uint8_t> mask;
    for (const PoolDocument& d : documents) {
      const auto row = pools.by_label->begin() + d.domain * n;
      mask.insert(mask.end(), row, row + n);
    }
    ops::copy_from_host(ctx, pool, mask.data());
  } else if (pools.sizes != nullptr) {
    pool = scratch.pool.rows(0, docs);
    std::vector<std::int32_t> sizes;
    for (const PoolDocument& d : documents)
      sizes.push_back(static_cast<std::int32_t>(std::min(n, pools.sizes->size(pools.step, layer_, d))));
    ops::copy_from_host(ctx, scratch.sizes.rows(0, docs), sizes.data());
    ops::router_softmax(ctx, out.p, logits);  // p is free until the restricted softmax
    ops::document_scores(ctx, scratch.scores.rows(0, docs), out.p, batch.pool_segments());
    ops::document_pools(ctx, pool, scratch.scores.rows(0, docs), scratch.sizes.rows(0, docs));
  }
  ops::masked_topk(ctx, out, logits, pool, batch.pool_segments(), selection_bias, config_.normalize_gates);
}

void MoeLayer::forward_add(Context& ctx, TensorView y, TensorView x, Saved& saved, const Scratch& scratch,
                           const DeviceBatch& batch, const std::vector<PoolDocument>& documents, const PoolPlan& pools,
                           TensorView selection_bias, const LayerStatistics* statistics,
                           const ParameterStore& store) const {
  const std::int64_t t = batch.tokens();
  {
    const Span span(ctx, "layer.router");
    route(ctx, x, saved, scratch, batch, documents, pools, selection_bias, store);
    const ops::TopkResult r = cut(saved, t);
    if (statistics != nullptr) {
      ops::router_statistics(ctx, statistics->counts, statistics->p_sum, statistics->z_sum, r);
      ops::document_experts(ctx, statistics->document_experts, r.ids, batch.pool_segments(), config_.routed_experts());
    }
    dispatcher_->plan(ctx, saved.handle, r.ids);
  }
  const std::int64_t rows = saved.handle.rows;
  const TensorView in = saved.rows.rows(0, rows), gates = saved.row_gates.rows(0, rows),
                   hidden = saved.hidden.rows(0, rows);
  const TensorView activation = scratch.activation.rows(0, rows), out = scratch.row_out.rows(0, rows);
  dispatcher_->dispatch(ctx, in, gates, x, saved.route.gates.rows(0, t), saved.handle);
  {
    const Span span(ctx, "layer.experts");
    ops::grouped_matmul_nt(ctx, hidden, in, store.weight(up_), saved.handle.offsets);
    ops::swiglu(ctx, activation, hidden, gates);
    ops::grouped_matmul_nt(ctx, out, activation, store.weight(down_), saved.handle.offsets);
  }
  dispatcher_->combine(ctx, y, out, saved.handle, 1.0F);
  const Span span(ctx, "layer.shared_expert");
  for (std::size_t s = 0; s < shared_.size(); ++s) {
    const auto begin = static_cast<std::int64_t>(s) * t;
    shared_[s].forward_add(ctx, y, x, saved.shared_hidden.rows(begin, begin + t), scratch.activation.rows(0, t), store);
  }
}

void MoeLayer::backward(Context& ctx, TensorView dx, TensorView dy, TensorView x, const Saved& saved,
                        const Scratch& scratch, const AuxiliaryGradients& auxiliary,
                        const ParameterStore& store) const {
  const std::int64_t t = dx.dim(0), rows = saved.handle.rows, n = config_.routed_experts();
  const TensorView in = saved.rows.rows(0, rows), gates = saved.row_gates.rows(0, rows),
                   hidden = saved.hidden.rows(0, rows);
  const TensorView activation = scratch.activation.rows(0, rows), drows = scratch.row_out.rows(0, rows);
  const TensorView drow_gates = scratch.drow_gates.rows(0, rows), dgates = scratch.dgates.rows(0, t);
  const TensorView& offsets = saved.handle.offsets;
  dispatcher_->combine_backward(ctx, drows, dy, saved.handle);
  {
    const Span span(ctx, "layer.experts_backward");
    ops::grouped_matmul_nn(ctx, activation, drows, store.weight(down_), offsets);
    ops::swiglu_backward(ctx, hidden, activation, drow_gates, activation, hidden, gates);
    ops::grouped_matmul_tn(ctx, store.grad(down_), drows, activation, offsets);
    ops::grouped_matmul_tn(ctx, store.grad(up_), hidden, in, offsets);
    ops::grouped_matmul_nn(ctx, drows, hidden, store.weight(up_), offsets);
  }
  dispatcher_->dispatch_backward(ctx, dx, dgates, drows, drow_gates, saved.handle, 0.0F);
  {
    const Span span(ctx, "layer.router_backward");
    const TensorView dlogits = scratch.logits.rows(0, t);
    ops::masked_topk_backward(ctx, dlogits, dgates, cut(saved, t), auxiliary.balance, auxiliary.z,
                              config_.normalize_gates);
    ops::matmul_tn(ctx, store.grad(router_).rows(0, n), dlogits, x, 1.0F);
    ops::matmul_nn(ctx, dx, dlogits, store.weight(router_).rows(0, n), 1.0F);
  }
  const Span span(ctx, "layer.shared_expert_backward");
  for (std::size_t s = 0; s < shared_.size(); ++s) {
    const auto begin = static_cast<std::int64_t>(s) * t;
    shared_[s].backward(ctx, dx, dy, x, saved.shared_hidden.rows(begin, begin + t), scratch.activation.rows(0, t), 1.0F,
                        store);
  }
}

}  // namespace emox
