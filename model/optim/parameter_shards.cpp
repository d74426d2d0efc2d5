#include "model/optim/parameter_shards.h"

#include <algorithm>
#include <utility>

namespace emox {
namespace {

std::vector<ExpertLayer> expert_layers(const ParameterStore& store) {
  std::vector<ExpertLayer> layers;
  for (const auto& slots : store.expert_layers()) {
    ExpertLayer layer{slots.front().shape[0], {}};
    for (const ParameterSlot& s : slots) layer.tensors.push_back({s.offset, s.shape.tail().numel()});
    layers.push_back(std::move(layer));
  }
  return layers;
}

}  // namespace

ParameterShards::ParameterShards(const ParameterStore& store, ProcessMesh& mesh) : store_(store) {
  groups_.push_back(
      {ParameterGroup::Dense,
       ShardedBuffer(mesh.world(), even_ranges(0, store.flat_size(ParameterGroup::Dense), mesh.world().size()))});
  groups_.push_back({ParameterGroup::Expert,
                     ShardedBuffer(mesh.replicas(), expert_ranges(expert_layers(store), mesh.replicas().size()))});
}

void ParameterShards::reduce(ShardedBuffer::Reduce when) {
  for (Group& g : groups_) g.shards.reduce(when);
}

void ParameterShards::start_reduction(std::span<const ParameterRange> ready) {
  for (const ParameterRange& s : ready)
    for (Group& g : groups_)
      if (g.group == s.group) g.shards.start_reduce(store_.grad(store_.flat(g.group)), s.begin, s.end);
}

void ParameterShards::reduce_gradients() {
  for (Group& g : groups_) g.shards.finish_reduce(store_.grad(store_.flat(g.group)));
}

void ParameterShards::gather_gradients() {
  for (Group& g : groups_) g.shards.all_gather(store_.grad(store_.flat(g.group)));
}

void ParameterShards::gather_weights() {
  for (Group& g : groups_) g.shards.all_gather(store_.weight(store_.flat(g.group)));
}

void ParameterShards::start_gather_weights(DeviceQueue& compute) {
  constexpr std::int64_t kStretch = std::int64_t{16} << 20;  // elements, at least: few calls, and few layers each
  for (Group& g : groups_) {
    const std::int64_t size = store_.flat_size(g.group);
    std::vector<std::int64_t> ends;
    for (const NamedParameter& p : store_.named())
      if (p.slot.group == g.group) ends.push_back(p.slot.offset + p.slot.shape.numel());
    std::sort(ends.begin(), ends.end());
    const TensorView flat = store_.weight(store_.flat(g.group));  // before any stretch of it is on its way
    std::int64_t begin = 0;
    const auto gather = [&](std::int64_t end) {
      if (auto event = g.shards.start_all_gather(flat, begin, end))
        store_.expect_weights({g.group, begin, end}, std::move(event), compute);
      begin = end;
    };
    for (const std::int64_t end : ends)
      if (end - begin >= kStretch) gather(end);
    if (begin < size) gather(size);
  }
}

std::vector<ParameterShards::Piece> ParameterShards::owned() const {
  std::vector<Piece> owned;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const int self = groups_[g].shards.rank();
    std::vector<RowRange> own;
    for (const ShardedBuffer::Owned& o : groups_[g].shards.owned()) own.push_back({o.begin, o.end, self});
    std::size_t i = 0;  // both rise
    for (Piece& p : pieces_in(g, own)) {
      while (own[i].end <= p.begin) ++i;
      p.state = groups_[g].shards.owned()[i].state + p.begin - own[i].begin;
      owned.push_back(p);
    }
  }
  return owned;
}

std::vector<ParameterShards::Piece> ParameterShards::pieces(std::size_t group) const {
  return pieces_in(group, groups_[group].shards.ranges());
}

std::vector<ParameterShards::Piece> ParameterShards::pieces_in(std::size_t group,
                                                               std::span<const RowRange> ranges) const {
  std::vector<const NamedParameter*> named;
  for (const NamedParameter& p : store_.named())
    if (p.slot.group == groups_[group].group) named.push_back(&p);
  std::sort(named.begin(), named.end(), [](const auto* a, const auto* b) { return a->slot.offset < b->slot.offset; });
  const auto end_of = [](const NamedParameter* p) { return p->slot.offset + p->slot.shape.numel(); };
  std::vector<Piece> pieces;
  std::size_t first = 0;  // ranges rise, so those before it are done
  for (const RowRange& r : ranges) {
    while (first < named.size() && end_of(named[first]) <= r.begin) ++first;
    for (std::size_t i = first; i < named.size() && named[i]->slot.offset < r.end; ++i)
      pieces.push_back(
          {named[i], group, std::max(r.begin, named[i]->slot.offset), std::min(r.end, end_of(named[i])), 0, r.owner});
  }
  return pieces;
}

std::vector<OwnedPart> ParameterShards::owned_weights() const {
  std::vector<OwnedPart> parts;
  for (const Piece& p : owned()) {
    const ParameterSlot& slot = p.parameter->slot;
    parts.push_back({p.parameter->name, "weight", slot.shape, p.begin - slot.offset, p.end - slot.offset,
                     store_.weight(store_.flat(slot.group, p.begin, p.end))});
  }
  return parts;
}

}  // namespace emox
