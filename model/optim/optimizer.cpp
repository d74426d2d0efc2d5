#include "model/optim/optimizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "runtime/ops/basic.h"
#include "runtime/ops/optim.h"
#include "runtime/telemetry/spans.h"

namespace emox {
namespace {

constexpr std::int64_t kBucketElements = 4 << 20;  // 16 MiB: long messages, and a bounded staging buffer

void add_square_sum(Context& ctx, const Tensor& sum, TensorView x) {
  if (x.numel() > 0) ops::sum_of_squares(ctx, sum, x);
}

}  // namespace

double clip_factor(double norm, double clip_norm) {
  return clip_norm > 0 ? std::min(1.0, clip_norm / (norm + 1e-6)) : 1.0;
}

Optimizer::Group Optimizer::make_group(Context& ctx, ParameterGroup group, Communicator& ranks,
                                       std::vector<Bucket> buckets) const {
  Group g{group, ShardedBuffer(ranks, std::move(buckets)), {}, {}};
  g.exp_avg = Tensor(ctx.device, DType::F32, {g.shards.owned_elements()});
  g.exp_avg_sq = Tensor(ctx.device, DType::F32, {g.shards.owned_elements()});
  return g;
}

Optimizer::Optimizer(Context& ctx, const ParameterStore& store, ProcessMesh& mesh) : store_(store) {
  groups_.push_back(
      make_group(ctx, ParameterGroup::Dense, mesh.world(),
                 even_buckets(0, store.flat_size(ParameterGroup::Dense), mesh.world().size(), kBucketElements)));
  std::vector<Bucket> buckets;
  for (const ParameterSlot& s : store.expert_tensors())
    for (Bucket& b : expert_buckets(s.offset, s.shape[0], s.shape[1], s.shape[2], mesh.replicas().size()))
      buckets.push_back(std::move(b));
  groups_.push_back(make_group(ctx, ParameterGroup::Expert, mesh.replicas(), std::move(buckets)));
}

void Optimizer::reduce_gradients(Context& ctx) {
  const Span span(ctx, "comm.gradients");
  for (Group& g : groups_) g.shards.reduce_scatter(flat_grad(g));
}

void Optimizer::gather_gradients(Context&) {
  for (Group& g : groups_) g.shards.all_gather(flat_grad(g));
}

double Optimizer::owned_square_sum(Context& ctx) const {
  const Tensor sum(ctx.device, DType::F64, {1});
  for (const Group& g : groups_)
    for (const ShardedBuffer::Owned& o : g.shards.owned()) add_square_sum(ctx, sum, flat_grad(g).rows(o.begin, o.end));
  return ops::to_host<double>(ctx, sum)[0];
}

void Optimizer::update(Context& ctx, const AdamWConfig& config, double learning_rate, double grad_scale,
                       std::int64_t step) {
  for (Group& g : groups_) {
    const auto& runs = store_.runs(g.group);
    for (const ShardedBuffer::Owned& o : g.shards.owned())
      for (const ParameterStore::Run& run : runs) {
        const std::int64_t begin = std::max(o.begin, run.begin), end = std::min(o.end, run.end);
        if (begin >= end) continue;
        const ParameterSlot slot = store_.flat(g.group, begin, end);
        const std::int64_t state = o.state + begin - o.begin;
        ops::adamw(ctx, store_.weight(slot), store_.grad(slot), g.exp_avg.view().rows(state, state + end - begin),
                   g.exp_avg_sq.view().rows(state, state + end - begin),
                   {learning_rate, config.beta1, config.beta2, config.eps, run.decay ? config.weight_decay : 0.0,
                    grad_scale, steps_before_ + step});
      }
  }
  const Span span(ctx, "comm.weights");
  for (Group& g : groups_) g.shards.all_gather(store_.weight(store_.flat(g.group)));
}

std::size_t Optimizer::state_bytes() const {
  std::size_t bytes = 0;
  for (const Group& g : groups_) bytes += g.exp_avg.view().bytes() + g.exp_avg_sq.view().bytes();
  return bytes;
}

// Calls visit(parameter, group, begin, end, state) for every piece of a parameter that this rank owns, as elements of
// the flat buffers.
template <typename Visit>
void Optimizer::for_owned_parts(Visit&& visit) const {
  for (const Group& g : groups_) {
    std::vector<const NamedParameter*> named;
    for (const NamedParameter& p : store_.named())
      if (p.slot.group == g.group) named.push_back(&p);
    std::sort(named.begin(), named.end(), [](const auto* a, const auto* b) { return a->slot.offset < b->slot.offset; });
    std::size_t first = 0;  // owned stretches rise, so those before it are done
    for (const ShardedBuffer::Owned& o : g.shards.owned()) {
      const auto end_of = [](const NamedParameter* p) { return p->slot.offset + p->slot.shape.numel(); };
      while (first < named.size() && end_of(named[first]) <= o.begin) ++first;
      for (std::size_t i = first; i < named.size() && named[i]->slot.offset < o.end; ++i) {
        const std::int64_t begin = std::max(o.begin, named[i]->slot.offset), end = std::min(o.end, end_of(named[i]));
        visit(*named[i], g, begin, end, o.state + begin - o.begin);
      }
    }
  }
}

std::vector<CheckpointPiece> Optimizer::owned_pieces() const {
  std::vector<CheckpointPiece> pieces;
  for_owned_parts(
      [&](const NamedParameter& p, const Group& g, std::int64_t begin, std::int64_t end, std::int64_t state) {
        const std::int64_t n = end - begin, at = begin - p.slot.offset;
        pieces.push_back({p.name, "weight", p.slot.shape, at, at + n, store_.weight(store_.flat(g.group, begin, end))});
        pieces.push_back({p.name, "exp_avg", p.slot.shape, at, at + n, g.exp_avg.view().rows(state, state + n)});
        pieces.push_back({p.name, "exp_avg_sq", p.slot.shape, at, at + n, g.exp_avg_sq.view().rows(state, state + n)});
      });
  return pieces;
}

std::vector<CheckpointPiece> Optimizer::wanted_pieces() const {
  std::vector<CheckpointPiece> pieces;
  for (const NamedParameter& p : store_.named())
    pieces.push_back({p.name, "weight", p.slot.shape, 0, p.slot.shape.numel(), store_.weight(p.slot)});
  for (CheckpointPiece& piece : owned_pieces())
    if (piece.role != "weight") pieces.push_back(std::move(piece));
  return pieces;
}

std::string Optimizer::describe_non_finite(Context& ctx) const {
  std::string weights, gradients;
  int bad_weights = 0, bad_gradients = 0;
  const auto norm_of = [&](TensorView x) {
    const Tensor sum(ctx.device, DType::F64, {1});
    add_square_sum(ctx, sum, x);
    return std::sqrt(ops::to_host<double>(ctx, sum)[0]);
  };
  for (const NamedParameter& p : store_.named())
    if (!std::isfinite(norm_of(store_.weight(p.slot))) && bad_weights++ == 0) weights = p.name;
  for_owned_parts([&](const NamedParameter& p, const Group& g, std::int64_t begin, std::int64_t end, std::int64_t) {
    const double norm = norm_of(store_.grad(store_.flat(g.group, begin, end)));
    if (!std::isfinite(norm) && bad_gradients++ == 0) gradients = fmt::format("{} ({})", p.name, norm);
  });
  const auto total = store_.named().size();
  if (bad_weights > 0)
    return fmt::format("{} of {} weight tensors hold non-finite numbers, the first is {}", bad_weights, total, weights);
  if (bad_gradients > 0)
    return fmt::format("the weights here are finite; gradients of {} of the {} tensors here are not, the first is {}",
                       bad_gradients, total, gradients);
  return "all weights here, and the gradients that this rank owns, are finite";
}

}  // namespace emox
