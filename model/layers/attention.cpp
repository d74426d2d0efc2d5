#include "model/layers/attention.h"

#include <fmt/format.h>

#include "runtime/ops/basic.h"
#include "runtime/ops/layers.h"
#include "runtime/ops/matmul.h"

namespace emox {

Attention::Attention(const ModelConfig& config, std::int64_t layer, ParameterStore& store)
    : heads_(static_cast<int>(config.heads)), width_(config.d_model), eps_(static_cast<float>(config.norm_eps)) {
  const std::string prefix = fmt::format("model.layers.{}.", layer);
  norm_ = store.reserve({width_});
  qkv_ = store.reserve({3 * width_, width_});
  out_ = store.reserve({width_, width_});
  store.name(prefix + "pre_attention_layernorm.weight", norm_, false);
  int part = 0;
  for (const char* name : {"q_proj", "k_proj", "v_proj"}) {
    store.name(prefix + "self_attn." + name + ".weight", qkv_.rows(part * width_, (part + 1) * width_));
    ++part;
  }
  store.name(prefix + "self_attn.o_proj.weight", out_);
}

Attention::Saved Attention::reserve(Arena& arena, std::int64_t tokens) const {
  return {arena.activation({tokens, width_}), arena.f32({tokens}), arena.activation({tokens, 3 * width_}),
          arena.activation({tokens, width_}), arena.f32({heads_ * tokens})};
}

void Attention::forward(Context& ctx, TensorView y, const Input& in, const Saved& saved,
                        const ParameterStore& store) const {
  const auto& [x, batch, rope] = in;
  const std::int64_t t = batch.tokens();
  const TensorView normed = saved.normed.rows(0, t), qkv = saved.qkv.rows(0, t), mixed = saved.mixed.rows(0, t);
  ops::rms_norm(ctx, normed, saved.rstd.rows(0, t), x, store.weight(norm_), eps_);
  ops::matmul_nt(ctx, qkv, normed, store.weight(qkv_));
  ops::attention(ctx, mixed, saved.lse.rows(0, heads_ * t).reshape({heads_, t}), qkv, batch.attention_segments(),
                 heads_, {batch.positions(), rope.cos, rope.sin});
  ops::copy(ctx, y, x);
  ops::matmul_nt(ctx, y, mixed, store.weight(out_), 1.0F);
}

void Attention::backward(Context& ctx, TensorView d, const Input& in, const Saved& saved, const Scratch& scratch,
                         const ParameterStore& store) const {
  const auto& [x, batch, rope] = in;
  const std::int64_t t = batch.tokens();
  const TensorView dnormed = scratch.dnormed.rows(0, t), dqkv = scratch.dqkv.rows(0, t);
  const TensorView mixed = saved.mixed.rows(0, t), qkv = saved.qkv.rows(0, t), normed = saved.normed.rows(0, t);
  const TensorView dmixed = dnormed;  // free until the last product writes it
  ops::matmul_tn(ctx, store.grad(out_), d, mixed, 1.0F);
  ops::matmul_nn(ctx, dmixed, d, store.weight(out_));
  ops::attention_backward(ctx, dqkv, dmixed, mixed, saved.lse.rows(0, heads_ * t).reshape({heads_, t}), qkv,
                          batch.attention_segments(), heads_, {batch.positions(), rope.cos, rope.sin});
  ops::matmul_tn(ctx, store.grad(qkv_), dqkv, normed, 1.0F);
  ops::matmul_nn(ctx, dnormed, dqkv, store.weight(qkv_));
  ops::rms_norm_backward_add(ctx, d, store.grad(norm_), dnormed, x, saved.rstd.rows(0, t), store.weight(norm_));
}

}  // namespace emox
