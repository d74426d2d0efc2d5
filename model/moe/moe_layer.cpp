#include "model/moe/moe_layer.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/ops/basic.h"
#include "runtime/ops/expert_scores.h"
#include "runtime/ops/experts.h"
#include "runtime/ops/matmul.h"
#include "runtime/telemetry/log.h"
#include "runtime/telemetry/spans.h"

namespace emox {
namespace {

/// The first elements of the memory of `x` as [rows, width].
TensorView front(const TensorView& x, std::int64_t rows, std::int64_t width) {
  return x.reshape({x.numel()}).rows(0, rows * width).reshape({rows, width});
}

}  // namespace

MoeLayer::MoeLayer(const ModelConfig& config, std::int64_t layer, ParameterStore& store, ExpertParallel& experts)
    : config_(config),
      layer_(layer),
      dispatcher_(experts.make_dispatcher(layer, config.routed_top_k())),
      choices_(config.routed_experts()) {
  const std::string prefix = fmt::format("model.layers.{}.mlp.", layer);
  const std::int64_t d = config.d_model, f = config.expert_ff, routed = config.routed_experts();
  const std::vector<std::int32_t> own_experts = experts.placement().experts_of(layer, experts.rank());
  const auto local = static_cast<std::int64_t>(own_experts.size());
  router_ = store.reserve({config.num_experts, d});
  const std::vector<ParameterSlot> slots = store.reserve_experts({{local, 2 * f, d}, {local, d, f}});
  up_ = slots[0];
  down_ = slots[1];
  store.name(prefix + "gate.weight", router_);
  std::int64_t next = 0;  // place of the next expert that is here
  for (std::int64_t e = 0; e < routed; ++e) {
    if (next == local || own_experts[idx(next)] != e) {
      for (const Shape& shape : {Shape{f, d}, Shape{f, d}, Shape{d, f}}) store.name_elsewhere(shape);
      continue;
    }
    const std::string expert = fmt::format("{}experts.{}.", prefix, e);
    store.name(expert + "gate_proj.weight", up_[next].rows(0, f));
    store.name(expert + "up_proj.weight", up_[next].rows(f, 2 * f));
    store.name(expert + "down_proj.weight", down_[next]);
    ++next;
  }
  for (std::int64_t e = routed; e < config.num_experts; ++e)
    shared_.emplace_back(d, f, fmt::format("{}experts.{}.", prefix, e), store);
}

MoeLayer::Saved MoeLayer::reserve(Arena& arena, std::int64_t tokens) const {
  const std::int64_t k = config_.routed_top_k(), d = config_.d_model, f = config_.expert_ff;
  const std::int64_t rows = dispatcher_->expected_rows(tokens);
  Saved s;
  s.route = {arena.f32({tokens, config_.num_experts}), arena.f32({tokens}), arena.i32({tokens, k}),
             arena.f32({tokens, k}), config_.routed_experts()};
  s.handle = dispatcher_->reserve(arena, tokens);
  s.rows = arena.growing_activation({rows, d});
  s.row_gates = arena.growing(DType::F32, {rows});
  s.hidden = arena.growing_activation({rows, 2 * f});
  s.shared_hidden = arena.activation({config_.shared_experts * tokens, 2 * f});
  return s;
}

MoeLayer::Scratch MoeLayer::reserve_scratch(Arena& arena, std::int64_t tokens) const {
  const std::int64_t n = config_.routed_experts(), k = config_.routed_top_k();
  const std::int64_t rows = dispatcher_->expected_rows(tokens);
  return {arena.f32({tokens, config_.num_experts}),
          arena.f32({tokens, n}),
          arena.allocate(DType::U8, {tokens, n}),
          arena.f32({tokens, k}),
          arena.growing_activation({std::max(rows, tokens), config_.expert_ff}),
          arena.growing_activation({rows, config_.d_model}),
          arena.growing(DType::F32, {rows})};
}

OutputNorms MoeLayer::reserve_norms(Arena& arena, std::int64_t tokens) const {
  return {arena.f32({tokens * config_.routed_top_k()}), arena.f32({config_.shared_experts * tokens}),
          arena.activation({tokens, config_.d_model})};
}

void MoeLayer::keep(Context& ctx, const std::vector<std::int32_t>& experts, TensorView selection_bias,
                    const ParameterStore& store) {
  const std::int64_t n = config_.routed_experts();
  choices_ = static_cast<std::int64_t>(experts.size());
  require<ShapeError>(choices_ > 0 && experts.front() >= 0 && experts.back() < n &&
                          std::adjacent_find(experts.begin(), experts.end(), std::greater_equal<>()) == experts.end(),
                      "layer {}: the kept experts must rise within [0, {})", layer_, n);
  for (Tensor* t : {&kept_ids_, &kept_rows_, &kept_bias_}) *t = Tensor();
  if (choices_ == n) return;
  kept_ids_ = Tensor(ctx.device, DType::I32, {choices_});
  ops::copy_from_host(ctx, kept_ids_, experts.data());
  kept_rows_ = Tensor(ctx.device, ctx.activations, {choices_, config_.d_model});
  ops::gather_rows(ctx, kept_rows_, store.weight(router_).rows(0, n), kept_ids_);
  if (selection_bias.null()) return;
  kept_bias_ = Tensor(ctx.device, DType::F32, {choices_});
  ops::gather_elements(ctx, kept_bias_, selection_bias, kept_ids_);
}

// How many rows arrive is known now; before anything is written, so that growing loses nothing and changes no result.
void MoeLayer::make_room(Context& ctx, const Saved& saved, const Scratch& scratch) const {
  const std::int64_t rows = saved.handle->rows, before = saved.rows->capacity();
  std::size_t grown = saved.handle->grown;
  for (GrowingTensor* t :
       {saved.rows, saved.row_gates, saved.hidden, scratch.activation, scratch.row_out, scratch.drow_gates})
    grown += t->ensure(rows);
  if (grown == 0 || ctx.log == nullptr) return;
  constexpr double kMib = 1048576;
  ctx.log->info(
      "layer {}: {} rows come to the experts of this rank (room for {} until now): receive buffers and lists grew by "
      "{:.1f} MiB, tensors take {:.0f} MiB now",
      layer_, rows, before, static_cast<double>(grown) / kMib, static_cast<double>(memory_stats().allocated) / kMib);
}

ops::TopkResult MoeLayer::routing_of(const Saved& s, std::int64_t t) const {
  return {s.route.p.rows(0, t), s.route.lse.rows(0, t), front(s.route.ids, t, picks()),
          front(s.route.gates, t, picks()), choices_};
}

DocumentPools MoeLayer::route(Context& ctx, const Saved& saved, const Scratch& scratch, const ParameterStore& store,
                              const Pass& pass) const {
  const DeviceBatch& batch = pass.batch;
  const std::int64_t t = batch.tokens(), n = choices_, docs = batch.pool_segments().numel() - 1;
  const bool some = !kept_ids_.view().null();
  const TensorView logits = scratch.logits.rows(0, t), sizes = batch.pool_sizes(layer_);
  const ops::TopkResult out = routing_of(saved, t);
  ops::logits(ctx, logits, pass.x, some ? kept_rows_.view() : store.weight(router_).rows(0, n));
  TensorView pool = batch.pool_masks(), free_tokens;
  require<ShapeError>(pool.null() || !some, "layer {}: pools by label are of all experts, some are kept", layer_);
  if (pool.null() && !sizes.null()) {
    pool = front(scratch.pool, docs, n);
    const TensorView scores = front(scratch.scores, docs, n);
    ops::router_softmax(ctx, out.p, logits, n);  // p is free until the restricted softmax
    ops::document_scores(ctx, scores, out.p, batch.pool_segments());
    ops::document_pools(ctx, pool, scores, sizes);
    free_tokens = batch.free_tokens(layer_);
  }
  ops::masked_topk(ctx, out, logits, pool, batch.pool_segments(), some ? kept_bias_.view() : pass.selection_bias,
                   config_.normalize_gates, free_tokens);
  return {pool, batch.pool_segments(), free_tokens};
}

void MoeLayer::add_shared_experts(Context& ctx, TensorView y, const Saved& saved, const Scratch& scratch,
                                  const ParameterStore& store, const Pass& pass) const {
  const Span span(ctx, "layer.shared_expert");
  const std::int64_t t = pass.x.dim(0);
  const OutputNorms* const norms = pass.norms;
  for (std::size_t s = 0; s < shared_.size(); ++s) {
    const auto begin = static_cast<std::int64_t>(s) * t;
    const TensorView out = norms == nullptr ? y : norms->scratch.rows(0, t);
    if (norms != nullptr) ops::zero(ctx, out);
    shared_[s].forward_add(ctx, out, {pass.x, saved.shared_hidden.rows(begin, begin + t), scratch.activation->rows(t)},
                           store);
    if (norms == nullptr) continue;
    ops::row_norms(ctx, norms->shared.rows(begin, begin + t), out);
    ops::add(ctx, y, out);
  }
}

void MoeLayer::forward_add(Context& ctx, TensorView y, Saved& saved, const Scratch& scratch,
                           const ParameterStore& store, const Pass& pass) const {
  const std::int64_t t = pass.batch.tokens();
  DispatchHandle& handle = *saved.handle;
  {
    const Span span(ctx, "layer.router");
    DocumentPools document_pools = route(ctx, saved, scratch, store, pass);
    const ops::TopkResult r = routing_of(saved, t);
    if (const LayerStatistics* s = pass.statistics; s != nullptr) {
      ops::router_statistics(ctx, s->counts.rows(0, choices_), s->p_sum.rows(0, choices_), s->z_sum, r);
      ops::document_experts(ctx, s->document_experts, r.ids, pass.batch.pool_segments(), choices_);
    }
    if (!kept_ids_.view().null()) {  // from here on, experts have their own numbers again; pools would not
      ops::translate_ids(ctx, r.ids, kept_ids_);
      document_pools.pool = document_pools.free_tokens = {};
    }
    if (pass.observer != nullptr && *pass.observer) (*pass.observer)(ctx, layer_, r.ids, document_pools);
    dispatcher_->plan_start(ctx, handle, r.ids, r.gates, document_pools);
  }
  // Shared experts run while rows travel; a device is given them before the host waits to know how many rows that are.
  const bool early = ctx.queue != nullptr && dispatcher_->overlaps();
  if (early) add_shared_experts(ctx, y, saved, scratch, store, pass);
  dispatcher_->plan_finish(ctx, handle);
  make_room(ctx, saved, scratch);
  dispatcher_->dispatch_start(ctx, handle, pass.x);
  if (!early) add_shared_experts(ctx, y, saved, scratch, store, pass);
  const std::int64_t rows = handle.rows;
  const TensorView in = saved.rows->rows(rows), gates = saved.row_gates->rows(rows), hidden = saved.hidden->rows(rows);
  const TensorView activation = scratch.activation->rows(rows), out = scratch.row_out->rows(rows);
  dispatcher_->dispatch_finish(ctx, handle, in, gates);
  {
    const Span span(ctx, "layer.experts");
    ops::experts(ctx, out, {in, gates, hidden, activation, handle.offsets}, {store.weight(up_), store.weight(down_)});
  }
  dispatcher_->combine(ctx, handle, y, out);
  if (pass.norms == nullptr) return;
  // The norms go home as gradients of the gates do; the rows that travel with them are of no use there.
  const TensorView row_norms = scratch.drow_gates->rows(rows);
  ops::row_norms(ctx, row_norms, out);
  dispatcher_->dispatch_backward(ctx, handle,
                                 {.dx = pass.norms->scratch.rows(0, t),
                                  .beta = 0.0F,
                                  .dgates = front(pass.norms->routed, t, picks()),
                                  .drows = out,
                                  .drow_gates = row_norms});
}

void MoeLayer::backward(Context& ctx, TensorView dx, const Saved& saved, const Scratch& scratch,
                        const ParameterStore& store, const BackwardPass& pass) const {
  require<ShapeError>(kept_ids_.view().null(), "layer {} trains with all of its experts, some are kept", layer_);
  DispatchHandle& handle = *saved.handle;
  const std::int64_t t = dx.dim(0), rows = handle.rows, n = config_.routed_experts();
  const TensorView in = saved.rows->rows(rows), gates = saved.row_gates->rows(rows), hidden = saved.hidden->rows(rows);
  const TensorView activation = scratch.activation->rows(rows), drows = scratch.row_out->rows(rows);
  const TensorView drow_gates = scratch.drow_gates->rows(rows), dgates = scratch.dgates.rows(0, t);
  dispatcher_->combine_backward_start(ctx, handle, pass.dy);
  {  // while gradients travel
    const Span span(ctx, "layer.shared_expert_backward");
    for (std::size_t s = 0; s < shared_.size(); ++s) {
      const auto begin = static_cast<std::int64_t>(s) * t;
      shared_[s].backward(ctx, dx, s == 0 ? 0.0F : 1.0F, pass.dy,
                          {pass.x, saved.shared_hidden.rows(begin, begin + t), scratch.activation->rows(t)}, store);
    }
  }
  dispatcher_->combine_backward_finish(ctx, handle, drows);
  {
    const Span span(ctx, "layer.experts_backward");
    ops::experts_backward(ctx, drows, drow_gates, {store.grad(up_), store.grad(down_)},
                          {in, gates, hidden, activation, handle.offsets}, {store.weight(up_), store.weight(down_)},
                          pass.expert_beta);
  }
  dispatcher_->dispatch_backward(
      ctx, handle,
      {.dx = dx, .beta = shared_.empty() ? 0.0F : 1.0F, .dgates = dgates, .drows = drows, .drow_gates = drow_gates});
  const Span span(ctx, "layer.router_backward");
  const TensorView dlogits = scratch.logits.rows(0, t);
  ops::masked_topk_backward(ctx, dlogits, dgates, routing_of(saved, t), pass.auxiliary.balance, pass.auxiliary.z,
                            config_.normalize_gates);
  ops::logits_backward(ctx, dx, store.grad(router_).rows(0, n), dlogits, pass.x, store.weight(router_).rows(0, n));
}

}  // namespace emox
