// How a flat buffer is cut among ranks, and that sums reach their owners and come back.
#include "parallel/data_parallel/sharded_buffer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>

#include "tests/support/ranks.h"
#include "tests/support/support.h"

namespace emox {
namespace {

constexpr std::int64_t kAlign = 16;

// Buckets of all members, end to end from begin to end.
void expect_tiles(const std::vector<Bucket>& buckets, std::int64_t begin, std::int64_t end, int members) {
  std::int64_t at = begin;
  for (const Bucket& b : buckets) {
    ASSERT_EQ(b.cuts.size(), static_cast<std::size_t>(members) + 1);
    EXPECT_EQ(b.cuts.front(), at);
    EXPECT_GT(b.cuts.back(), b.cuts.front());
    EXPECT_TRUE(std::is_sorted(b.cuts.begin(), b.cuts.end()));
    at = b.cuts.back();
  }
  EXPECT_EQ(at, end);
}

// The sizes of one bucket's parts.
std::vector<std::int64_t> parts_of(const Bucket& b) {
  std::vector<std::int64_t> sizes;
  for (std::size_t r = 0; r + 1 < b.cuts.size(); ++r) sizes.push_back(b.cuts[r + 1] - b.cuts[r]);
  return sizes;
}

std::int64_t spread(const std::vector<std::int64_t>& sizes) {
  const auto [least, most] = std::minmax_element(sizes.begin(), sizes.end());
  return *most - *least;
}

TEST(ShardedBuffer, EvenBucketsTileTheBuffer) {
  for (const std::int64_t begin : {0, 16, 4096})
    for (const std::int64_t size : {0, 1, 15, 16, 17, 63, 64, 100, 1000, 1024, 4097, 100003})
      for (const std::int64_t bucket : {16, 64, 1024, 1 << 20})
        for (int members = 1; members <= 9; ++members) {
          SCOPED_TRACE(testing::Message() << size << " elements from " << begin << ", buckets of " << bucket << ", "
                                          << members << " members");
          const auto buckets = even_buckets(begin, begin + size, members, bucket);
          expect_tiles(buckets, begin, begin + size, members);
          EXPECT_EQ(static_cast<std::int64_t>(buckets.size()), (size + bucket - 1) / bucket);
          for (const Bucket& b : buckets) {
            EXPECT_LE(b.cuts.back() - b.cuts.front(), bucket);
            // Even but for one aligned step, and what is left over at the end.
            EXPECT_LT(spread(parts_of(b)), 2 * kAlign);
            for (std::size_t r = 0; r + 1 < b.cuts.size(); ++r) EXPECT_EQ(b.cuts[r] % kAlign, 0);
          }
        }
}

struct Tensor3 {
  std::int64_t rows, columns;
};

TEST(ShardedBuffer, EnoughExpertsAreOwnedWhole) {
  const Tensor3 up{2 * 24, 32}, down{32, 24}, odd{3, 7};
  for (const std::int64_t experts : {1, 2, 3, 5, 8, 12, 127})
    for (int members = 1; members <= std::min<std::int64_t>(experts, 9); ++members) {
      SCOPED_TRACE(testing::Message() << experts << " experts, " << members << " members");
      std::vector<std::vector<std::int64_t>> experts_of_tensor;
      for (const Tensor3& t : {up, down, odd}) {
        const std::int64_t offset = 160, one = t.rows * t.columns;
        const auto buckets = expert_buckets(offset, experts, t.rows, t.columns, members);
        expect_tiles(buckets, offset, offset + experts * one, members);
        ASSERT_EQ(buckets.size(), 1U);
        std::vector<std::int64_t> first;  // expert that each member begins with
        for (const std::int64_t c : buckets[0].cuts) {
          EXPECT_EQ((c - offset) % one, 0) << "cut inside an expert";
          first.push_back((c - offset) / one);
        }
        std::vector<std::int64_t> held = parts_of(buckets[0]);
        EXPECT_GE(*std::min_element(held.begin(), held.end()), one) << "a member without an expert";
        EXPECT_LE(spread(held), one);
        experts_of_tensor.push_back(std::move(first));
      }
      // An expert's owner is the same in each of its tensors.
      EXPECT_EQ(experts_of_tensor[0], experts_of_tensor[1]);
      EXPECT_EQ(experts_of_tensor[0], experts_of_tensor[2]);
    }
}

TEST(ShardedBuffer, FewerExpertsThanMembersAreCutByRows) {
  for (const std::int64_t experts : {1, 2, 3, 5, 7})
    for (int members = static_cast<int>(experts) + 1; members <= 12; ++members)
      for (const Tensor3& t : {Tensor3{48, 32}, Tensor3{32, 24}, Tensor3{3, 7}, Tensor3{1, 5}}) {
        SCOPED_TRACE(testing::Message() << experts << " experts of " << t.rows << " x " << t.columns << ", " << members
                                        << " members");
        const std::int64_t offset = 32, one = t.rows * t.columns;
        const auto buckets = expert_buckets(offset, experts, t.rows, t.columns, members);
        expect_tiles(buckets, offset, offset + experts * one, members);
        ASSERT_EQ(buckets.size(), static_cast<std::size_t>(experts));
        for (const Bucket& b : buckets) {
          EXPECT_EQ(b.cuts.back() - b.cuts.front(), one);
          for (const std::int64_t c : b.cuts) EXPECT_EQ((c - offset) % t.columns, 0) << "cut inside a row";
          EXPECT_LE(spread(parts_of(b)), t.columns);
        }
      }
}

// A buffer with an even part, experts of two tensors, and gaps that belong to no bucket.
struct Layout {
  std::vector<Bucket> buckets;
  std::int64_t size = 0;
  std::vector<bool> covered;  ///< [size]
};

Layout layout_for(int members, std::int64_t experts) {
  Layout l;
  const auto add = [&](std::vector<Bucket> more, std::int64_t gap) {
    for (Bucket& b : more) {
      l.covered.resize(static_cast<std::size_t>(b.cuts.back()), true);
      l.buckets.push_back(std::move(b));
    }
    l.covered.resize(l.covered.size() + static_cast<std::size_t>(gap), false);
    l.size = static_cast<std::int64_t>(l.covered.size());
  };
  add(even_buckets(0, 1000, members, 256), 8);
  add(expert_buckets(l.size, experts, 6, 9, members), 5);
  add(expert_buckets(l.size, experts, 3, 9, members), 3);
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
  ShardedBuffer shards(comm, layout.buckets);
  owned[static_cast<std::size_t>(comm.rank())] = shards.owned();
  std::vector<float> mine(static_cast<std::size_t>(layout.size));
  for (std::int64_t i = 0; i < layout.size; ++i) mine[static_cast<std::size_t>(i)] = value_of(comm.rank(), i);
  const Tensor flat = test::tensor_of(mine, {layout.size});

  shards.reduce_scatter(flat);
  std::vector<float> now = test::values_of<float>(flat);
  std::int64_t state = 0;
  for (const ShardedBuffer::Owned& o : shards.owned()) {
    EXPECT_EQ(o.state, state);
    EXPECT_LT(o.begin, o.end);
    for (std::int64_t i = o.begin; i < o.end; ++i)
      ASSERT_EQ(now[static_cast<std::size_t>(i)], sum_of(members, i)) << "owned element " << i;
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
    const auto at = static_cast<std::size_t>(i);
    ASSERT_EQ(now[at], layout.covered[at] ? sum_of(members, i) : -1e30F) << "element " << i;
  }
}

TEST(ShardedBuffer, SumsReachTheirOwnersAndComeBack) {
  for (int members = 1; members <= 6; ++members)
    for (const std::int64_t experts : {2, 4, 7}) {
      SCOPED_TRACE(testing::Message() << members << " members, " << experts << " experts");
      const Layout layout = layout_for(members, experts);
      std::vector<std::vector<ShardedBuffer::Owned>> owned(static_cast<std::size_t>(members));
      test::run_ranks(members, [&](Communicator& comm) { reduce_and_gather(layout, members, comm, owned); });
      std::vector<int> owners(layout.covered.size(), 0);
      for (const auto& of_rank : owned)
        for (const ShardedBuffer::Owned& o : of_rank)
          for (std::int64_t i = o.begin; i < o.end; ++i) ++owners[static_cast<std::size_t>(i)];
      for (std::size_t i = 0; i < owners.size(); ++i)
        ASSERT_EQ(owners[i], layout.covered[i] ? 1 : 0) << "owners of element " << i;
    }
}

}  // namespace
}  // namespace emox
