#include "parallel/data_parallel/sharded_buffer.h"

#include <algorithm>
#include <utility>

namespace emox {
namespace {

constexpr std::int64_t kAlign = 16;  // elements: 64 bytes, so that no two ranks' parts share a cache line

/// A range that goes on where the last one ends, with the same owner, is one with it.
void append(std::vector<RowRange>& ranges, RowRange next) {
  if (next.begin == next.end) return;
  if (!ranges.empty() && ranges.back().owner == next.owner && ranges.back().end == next.begin)
    ranges.back().end = next.end;
  else
    ranges.push_back(next);
}

}  // namespace

std::vector<RowRange> even_ranges(std::int64_t begin, std::int64_t end, int members) {
  const std::int64_t n = end - begin, units = n / kAlign;
  const auto cut = [&](int r) { return r == members ? end : begin + units * r / members * kAlign; };
  std::vector<RowRange> ranges;
  for (int r = 0; r < members; ++r) append(ranges, {cut(r), cut(r + 1), r});
  return ranges;
}

std::vector<RowRange> expert_ranges(std::span<const ExpertLayer> layers, int members) {
  std::vector<RowRange> ranges;
  std::int64_t dealt = 0;  // experts that were left over in the layers so far: whose turn it is
  for (const ExpertLayer& layer : layers) {
    const std::int64_t each = layer.experts / members, left = layer.experts % members;
    const auto held_by = [&](int r) { return each + ((r - dealt % members + members) % members < left ? 1 : 0); };
    for (const ExpertLayer::Tensor& t : layer.tensors) {
      std::int64_t at = t.offset;
      for (int r = 0; r < members; ++r) {
        const std::int64_t next = at + held_by(r) * t.elements;
        append(ranges, {at, next, r});
        at = next;
      }
    }
    dealt += left;
  }
  return ranges;
}

ShardedBuffer::ShardedBuffer(Communicator& group, std::vector<RowRange> ranges)
    : group_(group), ranges_(std::move(ranges)) {
  for (const RowRange& r : ranges_) {
    if (r.owner != group.rank()) continue;
    owned_.push_back({r.begin, r.end, owned_elements_});
    owned_elements_ += r.end - r.begin;
  }
}

void ShardedBuffer::reduce_scatter(TensorView flat) {
  if (group_.size() > 1 && !ranges_.empty()) group_.reduce_scatter(flat, ranges_);
}

void ShardedBuffer::all_gather(TensorView flat) {
  if (group_.size() > 1 && !ranges_.empty()) group_.all_gather_v(flat, ranges_);
}

}  // namespace emox
