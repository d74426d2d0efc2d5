// How a flat buffer is cut among ranks, and that sums reach their owners and come back.
#include "parallel/data_parallel/sharded_buffer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>

#include "runtime/core/idx.h"
#include "tests/support/ranks.h"
#include "tests/support/support.h"

namespace emox {
namespace {

constexpr std::int64_t kAlign = 16;

std::vector<std::int64_t> elements_of(const std::vector<RowRange>& ranges, int members) {
  std::vector<std::int64_t> held(idx(members));
  for (const RowRange& r : ranges) held[idx(r.owner)] += r.end - r.begin;
  return held;
}

std::int64_t spread(const std::vector<std::int64_t>& sizes) {
  const auto [least, most] = std::minmax_element(sizes.begin(), sizes.end());
  return *most - *least;
}

TEST(ShardedBuffer, EvenRangesTileTheBuffer) {
  for (const std::int64_t begin : {0, 16, 4096})
    for (const std::int64_t size : {0, 1, 15, 16, 17, 63, 64, 100, 1000, 1024, 4097, 100003})
      for (int members = 1; members <= 9; ++members) {
        SCOPED_TRACE(testing::Message() << size << " elements from " << begin << ", " << members << " members");
        const auto ranges = even_ranges(begin, begin + size, members);
        std::int64_t at = begin;
        int owner = -1;
        for (const RowRange& r : ranges) {
          EXPECT_EQ(r.begin, at);
          EXPECT_EQ(r.begin % kAlign, 0);
          EXPECT_GT(r.owner, owner) << "one stretch each";
          at = r.end, owner = r.owner;
        }
        EXPECT_EQ(at, begin + size);
        EXPECT_LE(ranges.size(), idx(members));
        // Even but for one aligned step, and what is left over at the end.
        EXPECT_LT(spread(elements_of(ranges, members)), 2 * kAlign);
      }
}

std::vector<ExpertLayer> layers_of(std::int64_t layers, std::int64_t experts, std::int64_t& size) {
  std::vector<ExpertLayer> all;
  for (std::int64_t l = 0; l < layers; ++l) {
    ExpertLayer layer{experts, {}};
    for (const std::int64_t one : {2 * 24 * 32, 32 * 24, 21}) {
      layer.tensors.push_back({size, one});
      size += experts * one + 5;  // a gap that belongs to nobody
    }
    all.push_back(std::move(layer));
  }
  return all;
}

// Every expert of every layer has one owner for all its tensors, and the owners' numbers of experts are even.
TEST(ShardedBuffer, ExpertsAreDealtWhole) {
  for (const std::int64_t experts : {1, 2, 3, 5, 8, 12, 127})
    for (const std::int64_t layers : {1, 2, 7})
      for (int members = 1; members <= 12; ++members) {
        SCOPED_TRACE(testing::Message() << layers << " layers of " << experts << " experts, " << members << " members");
        std::int64_t size = 32;
        const auto all = layers_of(layers, experts, size);
        const auto ranges = expert_ranges(all, members);
        EXPECT_TRUE(std::is_sorted(ranges.begin(), ranges.end(),
                                   [](const RowRange& a, const RowRange& b) { return a.end <= b.begin; }));
        const auto owner = [&](std::int64_t element) {
          const auto at =
              std::find_if(ranges.begin(), ranges.end(), [&](const RowRange& r) { return element < r.end; });
          return at == ranges.end() || element < at->begin ? -1 : at->owner;
        };
        std::vector<std::int64_t> held(idx(members));
        for (const ExpertLayer& layer : all)
          for (std::int64_t e = 0; e < experts; ++e) {
            const int first = owner(layer.tensors[0].offset + e * layer.tensors[0].elements);
            ASSERT_GE(first, 0);
            ++held[idx(first)];
            for (const ExpertLayer::Tensor& t : layer.tensors) {
              ASSERT_EQ(owner(t.offset + e * t.elements), first);
              ASSERT_EQ(owner(t.offset + (e + 1) * t.elements - 1), first);
            }
          }
        EXPECT_LE(spread(held), 1);
        std::int64_t covered = 0;
        for (const RowRange& r : ranges) covered += r.end - r.begin;
        EXPECT_EQ(covered, layers * experts * (2 * 24 * 32 + 32 * 24 + 21)) << "nothing twice, no gap";
      }
}

// A buffer with an even part, experts of two layers, and gaps that belong to nobody.
struct Layout {
  std::vector<RowRange> ranges;
  std::int64_t size = 1008;
  std::vector<bool> covered;  ///< [size]
};

Layout layout_for(int members, std::int64_t experts) {
  Layout l;
  l.ranges = even_ranges(0, 1000, members);
  const auto layers = layers_of(2, experts, l.size);
  for (const RowRange& r : expert_ranges(layers, members)) l.ranges.push_back(r);
  l.covered.resize(idx(l.size));
  for (const RowRange& r : l.ranges) std::fill(l.covered.begin() + r.begin, l.covered.begin() + r.end, true);
  return l;
}

// Whole numbers, so that sums are exact in any order.
float value_of(int rank, std::int64_t i) { return static_cast<float>((rank + 1) * (i % 101 + 1) - 3 * rank); }

float sum_of(int members, std::int64_t i) {
  float sum = 0;
  for (int r = 0; r < members; ++r) sum += value_of(r, i);
  return sum;
}

void reduce_and_gather(const Layout& layout, int members, Communicator& comm,
                       std::vector<std::vector<ShardedBuffer::Owned>>& owned) {
  ShardedBuffer shards(comm, layout.ranges);
  owned[idx(comm.rank())] = shards.owned();
  std::vector<float> mine(idx(layout.size));
  for (std::int64_t i = 0; i < layout.size; ++i) mine[idx(i)] = value_of(comm.rank(), i);
  const Tensor flat = test::tensor_of(mine, {layout.size});

  shards.finish_reduce(flat);
  std::vector<float> now = test::values_of<float>(flat);
  std::int64_t state = 0;
  for (const ShardedBuffer::Owned& o : shards.owned()) {
    EXPECT_EQ(o.state, state);
    EXPECT_LT(o.begin, o.end);
    for (std::int64_t i = o.begin; i < o.end; ++i) ASSERT_EQ(now[idx(i)], sum_of(members, i)) << "owned element " << i;
    state += o.end - o.begin;
  }
  EXPECT_EQ(shards.owned_elements(), state);

  // What is not owned may be anything; gathering must not depend on it.
  std::vector<float> only_owned(now.size(), -1e30F);
  for (const ShardedBuffer::Owned& o : shards.owned())
    std::copy(now.begin() + o.begin, now.begin() + o.end, only_owned.begin() + o.begin);
  const Tensor gathered = test::tensor_of(only_owned, {layout.size});
  shards.all_gather(gathered);
  now = test::values_of<float>(gathered);
  for (std::int64_t i = 0; i < layout.size; ++i) {
    const auto at = idx(i);
    ASSERT_EQ(now[at], layout.covered[at] ? sum_of(members, i) : -1e30F) << "element " << i;
  }
}

TEST(ShardedBuffer, SumsReachTheirOwnersAndComeBack) {
  for (int members = 1; members <= 6; ++members)
    for (const std::int64_t experts : {2, 4, 7}) {
      SCOPED_TRACE(testing::Message() << members << " members, " << experts << " experts");
      const Layout layout = layout_for(members, experts);
      std::vector<std::vector<ShardedBuffer::Owned>> owned(idx(members));
      test::run_ranks(members, [&](Communicator& comm) { reduce_and_gather(layout, members, comm, owned); });
      std::vector<int> owners(layout.covered.size(), 0);
      for (const auto& of_rank : owned)
        for (const ShardedBuffer::Owned& o : of_rank)
          for (std::int64_t i = o.begin; i < o.end; ++i) ++owners[idx(i)];
      for (std::size_t i = 0; i < owners.size(); ++i)
        ASSERT_EQ(owners[i], layout.covered[i] ? 1 : 0) << "owners of element " << i;
    }
}

}  // namespace
}  // namespace emox
