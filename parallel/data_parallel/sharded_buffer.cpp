#include "parallel/data_parallel/sharded_buffer.h"

#include <algorithm>
#include <utility>

namespace emox {
namespace {

constexpr std::int64_t kAlign = 16;  // elements: 64 bytes, so that no two ranks' parts share a cache line

/// The place of cut r of n things among `members`, each a multiple of `unit` but for the last.
std::int64_t cut(std::int64_t n, std::int64_t unit, int r, int members) {
  return r == members ? n : n / unit * r / members * unit;
}

Bucket bucket_of(std::int64_t begin, std::int64_t elements, std::int64_t unit, int members) {
  Bucket b;
  for (int r = 0; r <= members; ++r) b.cuts.push_back(begin + cut(elements, unit, r, members));
  return b;
}

}  // namespace

std::vector<Bucket> even_buckets(std::int64_t begin, std::int64_t end, int members, std::int64_t bucket_elements) {
  std::vector<Bucket> buckets;
  for (; begin < end; begin += bucket_elements)
    buckets.push_back(bucket_of(begin, std::min(bucket_elements, end - begin), kAlign, members));
  return buckets;
}

std::vector<Bucket> expert_buckets(std::int64_t offset, std::int64_t experts, std::int64_t rows, std::int64_t columns,
                                   int members) {
  const std::int64_t one = rows * columns;
  if (experts >= members) return {bucket_of(offset, experts * one, one, members)};
  std::vector<Bucket> buckets;
  for (std::int64_t e = 0; e < experts; ++e) buckets.push_back(bucket_of(offset + e * one, one, columns, members));
  return buckets;
}

ShardedBuffer::ShardedBuffer(Communicator& group, std::vector<Bucket> buckets)
    : group_(group), buckets_(std::move(buckets)) {
  const auto me = static_cast<std::size_t>(group.rank());
  for (const Bucket& b : buckets_) {
    if (b.cuts[me] == b.cuts[me + 1]) continue;
    owned_.push_back({b.cuts[me], b.cuts[me + 1], owned_elements_});
    owned_elements_ += b.cuts[me + 1] - b.cuts[me];
  }
}

void ShardedBuffer::reduce_scatter(TensorView flat) {
  if (group_.size() == 1) return;
  std::vector<std::int64_t> cuts;
  for (const Bucket& b : buckets_) {
    cuts.clear();
    for (const std::int64_t c : b.cuts) cuts.push_back(c - b.cuts.front());
    group_.reduce_scatter(flat.rows(b.cuts.front(), b.cuts.back()), cuts);
  }
}

void ShardedBuffer::all_gather(TensorView flat) {
  if (group_.size() == 1) return;
  std::vector<std::int64_t> cuts;
  for (const Bucket& b : buckets_) {
    cuts.clear();
    for (const std::int64_t c : b.cuts) cuts.push_back(c - b.cuts.front());
    group_.all_gather_v(flat.rows(b.cuts.front(), b.cuts.back()), cuts);
  }
}

}  // namespace emox
