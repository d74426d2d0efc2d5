#include "parallel/data_parallel/sharded_buffer.h"

#include <algorithm>
#include <utility>

#include "runtime/core/error.h"

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

/// The parts of the ranges in [begin, end).
std::vector<RowRange> inside(const std::vector<RowRange>& ranges, std::int64_t begin, std::int64_t end) {
  std::vector<RowRange> parts;
  for (const RowRange& r : ranges)
    if (std::max(r.begin, begin) < std::min(r.end, end))
      parts.push_back({std::max(r.begin, begin), std::min(r.end, end), r.owner});
  return parts;
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

void ShardedBuffer::start_reduce(TensorView flat, std::int64_t begin, std::int64_t end) {
  if (when_ == Reduce::AtEnd || group_.size() == 1 || begin == end) return;
  for (const Elements& s : started_)
    require<ShapeError>(end <= s.begin || s.end <= begin,
                        "gradients [{}, {}) are summed already, their sum with [{}, {}) would count them twice",
                        s.begin, s.end, begin, end);
  started_.push_back({begin, end});
  const std::vector<RowRange> ranges = inside(ranges_, begin, end);
  if (!ranges.empty()) group_.reduce_scatter_start(flat, ranges);
}

void ShardedBuffer::finish_reduce(TensorView flat) {
  if (group_.size() == 1) return;
  std::sort(started_.begin(), started_.end(), [](const Elements& a, const Elements& b) { return a.begin < b.begin; });
  std::vector<RowRange> left;
  std::int64_t from = 0;
  for (const Elements& s : std::exchange(started_, {})) {
    const auto before = inside(ranges_, from, s.begin);
    left.insert(left.end(), before.begin(), before.end());
    from = s.end;
  }
  const auto last = inside(ranges_, from, flat.numel());
  left.insert(left.end(), last.begin(), last.end());
  if (!left.empty()) group_.reduce_scatter_start(flat, left);
  group_.settle();
}

void ShardedBuffer::all_gather(TensorView flat) {
  if (group_.size() > 1 && !ranges_.empty()) group_.all_gather_v(flat, ranges_);
}

std::shared_ptr<DeviceEvent> ShardedBuffer::start_all_gather(TensorView flat, std::int64_t begin, std::int64_t end) {
  const std::vector<RowRange> ranges = inside(ranges_, begin, end);
  if (group_.size() == 1 || ranges.empty()) return nullptr;
  group_.all_gather_v_start(flat, ranges);
  if (group_.queue() == nullptr) {
    group_.settle();
    return nullptr;
  }
  return group_.queue()->record();
}

}  // namespace emox
