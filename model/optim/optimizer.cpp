#include "model/optim/optimizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "runtime/ops/basic.h"
#include "runtime/ops/optim.h"
#include "runtime/telemetry/spans.h"

namespace emox {
namespace {

void add_square_sum(Context& ctx, TensorView sum, TensorView x) {
  if (x.numel() > 0) ops::sum_of_squares(ctx, sum, x);
}

}  // namespace

double clip_factor(double norm, double clip_norm) {
  return clip_norm > 0 ? std::min(1.0, clip_norm / (norm + 1e-6)) : 1.0;
}

Optimizer::Optimizer(Context& ctx, const ParameterStore& store, ProcessMesh& mesh)
    : store_(store), shards_(store, mesh) {
  for (const ParameterShards::Group& g : shards_.groups()) {
    const Shape owned{g.shards.owned_elements()};
    const bool rounded = store.weight_type() != DType::F32;
    moments_.push_back({Tensor(ctx.device, DType::F32, owned), Tensor(ctx.device, DType::F32, owned),
                        rounded ? Tensor(ctx.device, DType::F32, owned) : Tensor()});
  }
}

void Optimizer::start_reduction(Context& ctx, std::span<const ParameterRange> ready) {
  if (when_ == ShardedBuffer::Reduce::AtEnd) return;
  const Span span(ctx, "comm.gradients");
  shards_.start_reduction(ready);
}

void Optimizer::reduce_gradients(Context& ctx) {
  const Span span(ctx, "comm.gradients");
  shards_.reduce_gradients();
}

void Optimizer::gather_gradients(Context&) { shards_.gather_gradients(); }

void Optimizer::gather_weights(Context& ctx) {
  round_masters(ctx);
  const Span span(ctx, "comm.weights");
  shards_.gather_weights();
}

void Optimizer::round_masters(Context& ctx) {
  if (store_.weight_type() == DType::F32) return;
  for (std::size_t i = 0; i < moments_.size(); ++i) {
    const ParameterShards::Group& g = shards_.groups()[i];
    for (const ShardedBuffer::Owned& o : g.shards.owned())
      ops::convert(ctx, store_.weight(store_.flat(g.group, o.begin, o.end)),
                   moments_[i].master.view().rows(o.state, o.state + o.end - o.begin));
  }
}

TensorView Optimizer::master(const ParameterShards::Piece& p) const {
  if (store_.weight_type() == DType::F32) return store_.weight(store_.flat(p.parameter->slot.group, p.begin, p.end));
  return moments_[p.group].master.view().rows(p.state, p.state + p.end - p.begin);
}

void Optimizer::fill_weights(
    Context& ctx, const std::function<void(const NamedParameter&, TensorView part, std::int64_t first)>& fill) {
  for (const ParameterShards::Piece& p : shards_.owned())
    fill(*p.parameter, master(p), p.begin - p.parameter->slot.offset);
  gather_weights(ctx);
}

void Optimizer::add_owned_squares(Context& ctx, TensorView sum) const {
  for (const ParameterShards::Group& g : shards_.groups())
    for (const ShardedBuffer::Owned& o : g.shards.owned()) add_square_sum(ctx, sum, flat_grad(g).rows(o.begin, o.end));
}

void Optimizer::update(Context& ctx, const AdamWConfig& config, double learning_rate, double grad_scale,
                       std::int64_t step) {
  for (std::size_t i = 0; i < moments_.size(); ++i) {
    const ParameterShards::Group& g = shards_.groups()[i];
    const TensorView exp_avg = moments_[i].exp_avg, exp_avg_sq = moments_[i].exp_avg_sq;
    for (const ShardedBuffer::Owned& o : g.shards.owned())
      for (const ParameterStore::Run& run : store_.runs(g.group)) {
        const std::int64_t begin = std::max(o.begin, run.begin), end = std::min(o.end, run.end);
        if (begin >= end) continue;
        const ParameterSlot slot = store_.flat(g.group, begin, end);
        const std::int64_t state = o.state + begin - o.begin, n = end - begin;
        const TensorView weight = store_.weight(slot);
        const bool rounded = weight.dtype() != DType::F32;
        ops::adamw(ctx, rounded ? moments_[i].master.view().rows(state, state + n) : weight,
                   rounded ? weight : TensorView{}, store_.grad(slot), exp_avg.rows(state, state + n),
                   exp_avg_sq.rows(state, state + n),
                   {learning_rate, config.beta1, config.beta2, config.eps, run.decay ? config.weight_decay : 0.0,
                    grad_scale, steps_before_ + step});
      }
  }
  const Span span(ctx, "comm.weights");
  if (gather_meanwhile_ && ctx.queue != nullptr)
    shards_.start_gather_weights(*ctx.queue);
  else
    shards_.gather_weights();  // adamw has rounded them
}

std::size_t Optimizer::state_bytes() const {
  std::size_t bytes = 0;
  for (const Moments& m : moments_)
    bytes += m.exp_avg.view().bytes() + m.exp_avg_sq.view().bytes() + m.master.view().bytes();
  return bytes;
}

std::vector<OwnedPart> Optimizer::owned_parts() const {
  std::vector<OwnedPart> parts;
  for (const ParameterShards::Piece& p : shards_.owned()) {
    const ParameterSlot& slot = p.parameter->slot;
    parts.push_back({p.parameter->name, "weight", slot.shape, p.begin - slot.offset, p.end - slot.offset, master(p)});
  }
  for (const ParameterShards::Piece& p : shards_.owned()) {
    const ParameterSlot& slot = p.parameter->slot;
    const std::int64_t n = p.end - p.begin, at = p.begin - slot.offset;
    const auto moment = [&](const char* role, const Tensor& all) {
      parts.push_back({p.parameter->name, role, slot.shape, at, at + n, all.view().rows(p.state, p.state + n)});
    };
    moment("exp_avg", moments_[p.group].exp_avg);
    moment("exp_avg_sq", moments_[p.group].exp_avg_sq);
  }
  return parts;
}

std::string Optimizer::describe_non_finite(Context& ctx) const {
  std::string weights, gradients;
  int bad_weights = 0, bad_gradients = 0;
  const auto norm_of = [&](TensorView x) {
    const Tensor sum(ctx.device, DType::F64, {1});
    add_square_sum(ctx, sum, x);
    return std::sqrt(ops::to_host<double>(ctx, sum)[0]);
  };
  const auto note_weight = [&](const NamedParameter& p, TensorView w) {
    if (!std::isfinite(norm_of(w)) && bad_weights++ == 0) weights = p.name;
  };
  if (store_.weight_type() == DType::F32)
    for (const NamedParameter& p : store_.named()) note_weight(p, store_.weight(p.slot));
  else
    for (const ParameterShards::Piece& p : shards_.owned()) note_weight(*p.parameter, master(p));
  for (const ParameterShards::Piece& p : shards_.owned()) {
    const double norm = norm_of(store_.grad(store_.flat(p.parameter->slot.group, p.begin, p.end)));
    if (!std::isfinite(norm) && bad_gradients++ == 0) gradients = fmt::format("{} ({})", p.parameter->name, norm);
  }
  const auto total = store_.named().size();
  if (bad_weights > 0)
    return fmt::format("{} of {} weight tensors hold non-finite numbers, the first is {}", bad_weights, total, weights);
  if (bad_gradients > 0)
    return fmt::format("the weights here are finite; gradients of {} of the {} tensors here are not, the first is {}",
                       bad_gradients, total, gradients);
  return "all weights here, and the gradients that this rank owns, are finite";
}

}  // namespace emox
