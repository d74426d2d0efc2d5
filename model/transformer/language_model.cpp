#include "model/transformer/language_model.h"

#include <fmt/format.h>

#include <iterator>
#include <numeric>
#include <utility>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/ops/basic.h"
#include "runtime/ops/expert_scores.h"
#include "runtime/ops/layers.h"
#include "runtime/ops/loss.h"
#include "runtime/ops/matmul.h"
#include "runtime/telemetry/spans.h"

namespace emox {

LanguageModel::LanguageModel(const ModelConfig& config, Context& ctx, bool training, ExpertParallel* experts)
    : config_(config) {
  if (config.is_moe()) {
    if (experts == nullptr) own_experts_ = std::make_unique<ExpertParallel>(config.layers, config.routed_experts());
    experts_ = experts != nullptr ? experts : own_experts_.get();
  }
  const std::int64_t d = config.d_model;
  std::vector<std::int64_t> reserved(std::size(kParameterGroups), 0);
  const auto since_last = [&] {
    std::vector<ParameterRange> ranges;
    for (std::size_t g = 0; g < reserved.size(); ++g) {
      const std::int64_t end = store_.flat_size(kParameterGroups[g]);
      if (end > reserved[g]) ranges.push_back({kParameterGroups[g], std::exchange(reserved[g], end), end});
    }
    return ranges;
  };
  embedding_ = store_.reserve({config.vocab_size, d}, false);
  store_.name("model.embed_tokens.weight", embedding_);
  embedding_parameters_ = since_last();
  for (std::int64_t l = 0; l < config.layers; ++l) {
    Block block{Attention(config, l, store_), store_.reserve({d}), std::nullopt, std::nullopt, {}};
    store_.name(fmt::format("model.layers.{}.pre_feedforward_layernorm.weight", l), block.norm, false);
    if (config.is_moe())
      block.moe.emplace(config, l, store_, *experts_);
    else
      block.dense.emplace(d, config.dense_ff, fmt::format("model.layers.{}.mlp.", l), store_);
    block.parameters = since_last();
    blocks_.push_back(std::move(block));
  }
  final_norm_ = store_.reserve({d});
  store_.name("model.norm.weight", final_norm_, false);
  head_ = store_.reserve({config.vocab_size, d});
  store_.name("lm_head.weight", head_);
  head_parameters_ = since_last();
  store_.allocate(ctx.device, training, ctx.activations);

  rope_cos_ = Tensor(ctx.device, DType::F32, {config.sequence_length, config.head_dim() / 2});
  rope_sin_ = Tensor(ctx.device, DType::F32, {config.sequence_length, config.head_dim() / 2});
  if (!rope_cos_.view().null()) ops::rope_tables(ctx, rope_cos_, rope_sin_, config.rope_theta);
  if (config.is_moe() && config.balance == BalanceMode::Bias)
    selection_bias_ = Tensor(ctx.device, DType::F32, {config.layers, config.routed_experts()});
}

void LanguageModel::initialize(Context& ctx, std::uint64_t seed) {
  require<ShapeError>(store_.weight_type() == DType::F32,
                      "weights of {} are rounded from f32: draw those (Optimizer::fill_weights)",
                      name_of(store_.weight_type()));
  for (const NamedParameter& p : store_.named()) draw(ctx, seed, p, store_.weight(p.slot), 0);
}

void LanguageModel::draw(Context& ctx, std::uint64_t seed, const NamedParameter& p, TensorView part,
                         std::int64_t first) {
  if (p.matrix)
    ops::random_truncated_normal(ctx, part, Philox(seed, RngPurpose::Init), p.ordinal, first, 0.02, 0.06);
  else
    ops::fill(ctx, part, 1.0F);
}

Activations LanguageModel::reserve(Arena& arena, std::int64_t tokens) const {
  const std::int64_t d = config_.d_model;
  Activations a;
  for (const Block& block : blocks_) {
    Activations::Block b;
    b.input = arena.activation({tokens, d});
    b.middle = arena.activation({tokens, d});
    b.normed = arena.activation({tokens, d});
    b.rstd = arena.f32({tokens});
    b.attention = block.attention.reserve(arena, tokens);
    if (block.moe)
      b.moe = block.moe->reserve(arena, tokens);
    else
      b.dense_hidden = arena.activation({tokens, 2 * config_.dense_ff});
    a.blocks.push_back(std::move(b));
  }
  a.output = arena.activation({tokens, d});
  a.final_rstd = arena.f32({tokens});
  a.final_normed = arena.activation({tokens, d});
  return a;
}

void LanguageModel::reserve_scratch(Arena& arena, std::int64_t tokens) {
  const std::int64_t d = config_.d_model;
  scratch_.d = arena.activation({tokens, d});
  scratch_.attention.dnormed = arena.activation({tokens, d});
  scratch_.attention.dqkv = arena.activation({tokens, 3 * d});
  if (config_.is_moe()) {
    scratch_.moe = blocks_.front().moe->reserve_scratch(arena, tokens);
    experts_->reserve(arena, tokens, config_.routed_top_k(), d);
  } else {
    scratch_.dense_activation = arena.activation({tokens, config_.dense_ff});
  }
  const std::size_t bytes = ops::lm_head_loss_scratch(arena.device(), tokens, config_.vocab_size);
  scratch_.loss = arena.allocate(DType::U8, {static_cast<std::int64_t>(bytes)});
}

void LanguageModel::forward(Context& ctx, Activations& a, const DeviceBatch& batch,
                            const RoutingStatistics* statistics) {
  forward_blocks(ctx, a, batch, {config_.layers, statistics, nullptr});
  const std::int64_t t = batch.tokens();
  ops::rms_norm(ctx, a.final_normed.rows(0, t), a.final_rstd.rows(0, t), a.output.rows(0, t),
                store_.weight(final_norm_), static_cast<float>(config_.norm_eps));
}

void LanguageModel::observe(Context& ctx, Activations& a, const DeviceBatch& batch, const Observation& observation) {
  forward_blocks(ctx, a, batch, observation);
}

OutputScores LanguageModel::reserve_output_scores(Arena& arena, std::int64_t tokens) const {
  return {arena.allocate(DType::F64, {config_.layers, config_.num_experts}),
          arena.activation({tokens, config_.d_model}), arena.allocate(DType::F64, {tokens}),
          blocks_.front().moe->reserve_norms(arena, tokens)};
}

void LanguageModel::keep_experts(Context& ctx, const std::vector<std::vector<std::int32_t>>& routed) {
  require<ShapeError>(config_.is_moe() && !store_.training(), "experts are kept in evaluation of MoE models only");
  require<ShapeError>(routed.size() == blocks_.size(), "experts of {} layers to keep, the model has {}", routed.size(),
                      blocks_.size());
  for (std::size_t l = 0; l < blocks_.size(); ++l)
    blocks_[l].moe->keep(ctx, routed[l], selection_bias(static_cast<std::int64_t>(l)), store_);
}

void LanguageModel::keep_all_experts(Context& ctx) {
  std::vector<std::int32_t> all(idx(config_.routed_experts()));
  std::iota(all.begin(), all.end(), 0);
  keep_experts(ctx, {blocks_.size(), all});
}

TensorView LanguageModel::selection_bias(std::int64_t layer) const {
  return selection_bias_.view().null() ? TensorView{} : selection_bias_.view()[layer];
}

// What the layer's experts add, apart from the residual stream, so that its direction can be compared.
void LanguageModel::observe_outputs(Context& ctx, std::int64_t layer, TensorView y, TensorView normed,
                                    const MoeLayer::Saved& saved, const OutputScores& o) const {
  const std::int64_t t = y.dim(0), shared = config_.shared_experts, picks = blocks_[idx(layer)].moe->picks();
  const auto front = [](const TensorView& x, Shape shape) {
    return x.reshape({x.numel()}).rows(0, shape.numel()).reshape(shape);
  };
  const TensorView output = o.output.rows(0, t), change = o.change.rows(0, t);
  ops::output_change(ctx, change, normed, output);
  ops::add_expert_scores(ctx, o.sums[layer], front(saved.route.ids, {t, picks}), front(o.norms.routed, {t, picks}),
                         front(o.norms.shared, {shared, t}), change);
  ops::add(ctx, y, output);
}

void LanguageModel::forward_blocks(Context& ctx, Activations& a, const DeviceBatch& batch,
                                   const Observation& observation) {
  const ExpertParallel::TransferGuard guard(experts_);
  const RoutingStatistics* statistics = observation.statistics;
  const OutputScores* outputs = observation.outputs;
  const std::int64_t t = batch.tokens();
  const Attention::Rope rope{rope_cos_, rope_sin_};
  const auto eps = static_cast<float>(config_.norm_eps);
  ops::embedding(ctx, a.blocks.front().input.rows(0, t), batch.ids(), store_.weight(embedding_));
  for (std::size_t l = 0; l < idx(observation.blocks); ++l) {
    const Block& block = blocks_[l];
    Activations::Block& s = a.blocks[l];
    const auto layer = static_cast<std::int64_t>(l);
    const TensorView x = s.input.rows(0, t), middle = s.middle.rows(0, t), normed = s.normed.rows(0, t);
    const TensorView y = (l + 1 < blocks_.size() ? a.blocks[l + 1].input : a.output).rows(0, t);
    {
      const Span span(ctx, "layer.attention");
      block.attention.forward(ctx, middle, {x, batch, rope}, s.attention, store_);
    }
    ops::rms_norm(ctx, normed, s.rstd.rows(0, t), middle, store_.weight(block.norm), eps);
    ops::copy(ctx, y, middle);
    if (block.moe) {
      const LayerStatistics layer_statistics = statistics != nullptr ? statistics->layer(layer) : LayerStatistics{};
      const TensorView out = outputs == nullptr ? y : outputs->output.rows(0, t);
      if (outputs != nullptr) ops::zero(ctx, out);
      block.moe->forward_add(ctx, out, s.moe, scratch_.moe, store_,
                             {normed, batch, selection_bias(layer), statistics != nullptr ? &layer_statistics : nullptr,
                              &routing_observer_, outputs != nullptr ? &outputs->norms : nullptr});
      if (outputs != nullptr) observe_outputs(ctx, layer, y, normed, s.moe, *outputs);
    } else {
      block.dense->forward_add(ctx, y, {normed, s.dense_hidden.rows(0, t), scratch_.dense_activation.rows(0, t)},
                               store_);
    }
  }
}

void LanguageModel::logits(Context& ctx, TensorView out, const Activations& a, const DeviceBatch& batch) {
  ops::logits(ctx, out, a.final_normed.rows(0, batch.tokens()), store_.weight(head_));
}

void LanguageModel::loss(Context& ctx, Activations& a, const DeviceBatch& batch, const LossRequest& request) {
  const std::int64_t t = batch.tokens();
  const TensorView x = a.final_normed.rows(0, t), dx = request.gradient ? scratch_.d.rows(0, t) : TensorView{};
  ops::lm_head_loss(ctx,
                    {.sums = request.sums,
                     .token_loss = request.token_loss,
                     .dx = dx,
                     .dweight = request.gradient ? store_.grad(head_) : TensorView{}},
                    {.x = x, .weight = store_.weight(head_), .labels = batch.labels()}, scratch_.loss,
                    {request.inverse_divisor, request.z_weight});
  if (request.gradient) ops::copy(ctx, x, dx);
}

void LanguageModel::backward(Context& ctx, Activations& a, const DeviceBatch& batch, const BackwardRequest& request) {
  const auto& [balance, z, ready, expert_beta] = request;
  const ExpertParallel::TransferGuard guard(experts_);
  const std::int64_t t = batch.tokens();
  const Attention::Rope rope{rope_cos_, rope_sin_};
  const TensorView d = scratch_.d.rows(0, t), dnormed = scratch_.attention.dnormed.rows(0, t);  // both use it
  ops::zero(ctx, d);
  ops::rms_norm_backward_add(ctx, d, store_.grad(final_norm_), a.final_normed.rows(0, t), a.output.rows(0, t),
                             a.final_rstd.rows(0, t), store_.weight(final_norm_));
  if (ready) ready(head_parameters_);
  for (std::size_t l = blocks_.size(); l-- > 0;) {
    const Block& block = blocks_[l];
    const Activations::Block& s = a.blocks[l];
    const TensorView normed = s.normed.rows(0, t);
    if (block.moe) {
      const AuxiliaryGradients auxiliary{balance.null() ? TensorView{} : balance[static_cast<std::int64_t>(l)], z};
      block.moe->backward(ctx, dnormed, s.moe, scratch_.moe, store_, {normed, d, auxiliary, expert_beta});
    } else {
      block.dense->backward(ctx, dnormed, 0.0F, d,
                            {normed, s.dense_hidden.rows(0, t), scratch_.dense_activation.rows(0, t)}, store_);
    }
    ops::rms_norm_backward_add(ctx, d, store_.grad(block.norm), dnormed, s.middle.rows(0, t), s.rstd.rows(0, t),
                               store_.weight(block.norm));
    {
      const Span span(ctx, "layer.attention_backward");
      block.attention.backward(ctx, d, {s.input.rows(0, t), batch, rope}, s.attention, scratch_.attention, store_);
    }
    if (ready) ready(block.parameters);
  }
  ops::embedding_backward(ctx, store_.grad(embedding_), batch.ids(), d);
  if (ready) ready(embedding_parameters_);
}

}  // namespace emox
