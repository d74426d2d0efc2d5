// Dispatch plans on a device: the integers of the CPU, hop by hop, for random picks on meshes of several ranks.
#include <algorithm>
#include <numeric>
#include <random>

#include "runtime/core/error.h"
#include "runtime/ops/dispatch_plan.h"
#include "tests/cuda/device_test.h"

namespace emox::test {
namespace {

using Ids = std::vector<std::int32_t>;
using Counts = std::vector<std::int64_t>;

template <typename T>
Tensor line(const std::vector<T>& v) {
  return tensor_of(v, {static_cast<std::int64_t>(v.size())});
}
template <typename T>
std::vector<T> part(const std::vector<T>& v, std::int64_t begin, std::int64_t count) {
  return {v.begin() + begin, v.begin() + begin + count};
}

/// Rows of one rank on the host.
struct Picks {
  Ids experts, first{0};
  std::int64_t rows() const { return static_cast<std::int64_t>(first.size()) - 1; }
};

struct Sent {
  Counts counts;
  Ids row, pick, packed, slots;
  friend bool operator==(const Sent&, const Sent&) = default;
};
struct Sorted {
  Counts offsets;
  Ids row, pick, slots;
  friend bool operator==(const Sorted&, const Sorted&) = default;
};

class DispatchPlanTest : public DeviceTest {
 protected:
  ops::RowPicks picks(const Tensor& experts, const Tensor& first) { return {experts, first}; }

  /// On the CPU, and the same on the device.
  Sent send(const Picks& in, const Ids& destination, int self, std::int64_t ranks, std::int64_t width) {
    const Tensor experts = line(in.experts), first = line(in.first), to = line(destination);
    const Tensor device_experts = up(experts), device_first = up(first), device_to = up(to);
    const auto n = static_cast<std::int64_t>(in.experts.size());
    const Tensor counts = tensor_of(Counts(idx(2 * ranks), -1), {ranks, 2}),
                 got_counts = garbage(DType::I64, {ranks, 2});
    ops::count_destinations(cpu, counts, picks(experts, first), to);
    ops::count_destinations(gpu, got_counts, picks(device_experts, device_first), device_to);
    Sent want{values_of<std::int64_t>(counts), {}, {}, {}, {}};
    EXPECT_EQ(down<std::int64_t>(got_counts), want.counts);
    std::int64_t rows = 0;
    for (std::size_t i = 0; i < want.counts.size(); i += 2) rows += want.counts[i];
    const Tensor row = line(Ids(idx(rows))), pick = line(Ids(idx(n))), packed = line(Ids(idx(n)));
    const Tensor slots = tensor_of(Ids(idx(in.rows() * width)), {in.rows(), width});
    ops::plan_send(cpu, {row, pick, packed, slots}, picks(experts, first), to, counts, self);
    want = {want.counts, values_of<std::int32_t>(row), values_of<std::int32_t>(pick), values_of<std::int32_t>(packed),
            values_of<std::int32_t>(slots)};
    const Tensor r = garbage(DType::I32, {rows}), p = garbage(DType::I32, {n}), k = garbage(DType::I32, {n}),
                 s = garbage(DType::I32, {in.rows(), width});
    ops::plan_send(gpu, {r, p, k, s}, picks(device_experts, device_first), device_to, got_counts, self);
    EXPECT_EQ(down<std::int32_t>(r), want.row);
    EXPECT_EQ(down<std::int32_t>(p), want.pick);
    EXPECT_EQ(down<std::int32_t>(k), want.packed);
    EXPECT_EQ(down<std::int32_t>(s), want.slots);
    EXPECT_EQ(fault(), std::nullopt);
    return want;
  }

  Picks unpack(const Ids& packed, std::int64_t rows) {
    const Tensor in = line(packed), experts = line(Ids(packed.size())), first = line(Ids(idx(rows + 1), -9));
    ops::unpack_picks(cpu, picks(experts, first), in);
    const Tensor e = garbage(DType::I32, experts.view().shape()), f = garbage(DType::I32, {rows + 1});
    ops::unpack_picks(gpu, picks(e, f), up(in));
    EXPECT_EQ(down<std::int32_t>(e), values_of<std::int32_t>(experts));
    EXPECT_EQ(down<std::int32_t>(f), values_of<std::int32_t>(first));
    EXPECT_EQ(fault(), std::nullopt);
    return {values_of<std::int32_t>(experts), values_of<std::int32_t>(first)};
  }

  Sorted sort(const Picks& in, const Counts& from, const Ids* local, std::int64_t experts, int self,
              std::int64_t width) {
    const auto n = static_cast<std::int64_t>(in.experts.size());
    const Tensor e = line(in.experts), first = line(in.first), source = line(from);
    const Tensor map = local == nullptr ? Tensor() : line(*local), device_map = local == nullptr ? Tensor() : up(map);
    const Tensor offsets = line(Counts(idx(experts + 1))), row = line(Ids(idx(n))), pick = line(Ids(idx(n)));
    const Tensor slots = tensor_of(Ids(idx(in.rows() * width)), {in.rows(), width});
    ops::plan_experts(cpu, {offsets, row, pick, slots}, picks(e, first), source, map, self);
    Sorted want{values_of<std::int64_t>(offsets), values_of<std::int32_t>(row), values_of<std::int32_t>(pick),
                values_of<std::int32_t>(slots)};
    const Tensor o = garbage(DType::I64, {experts + 1}), r = garbage(DType::I32, {n}), p = garbage(DType::I32, {n}),
                 s = garbage(DType::I32, {in.rows(), width});
    ops::plan_experts(gpu, {o, r, p, s}, picks(up(e), up(first)), up(source), device_map, self);
    EXPECT_EQ(down<std::int64_t>(o), want.offsets);
    EXPECT_EQ(down<std::int32_t>(r), want.row);
    EXPECT_EQ(down<std::int32_t>(p), want.pick);
    EXPECT_EQ(down<std::int32_t>(s), want.slots);
    EXPECT_EQ(fault(), std::nullopt);
    return want;
  }

  /// All ranks' rows after a hop: what each sends to each, this rank's own last.
  std::vector<Picks> hop(const std::vector<Picks>& before, const std::vector<Ids>& destination, std::int64_t width,
                         std::vector<Counts>& arrived_from) {
    const std::size_t ranks = before.size();
    std::vector<Sent> sent;
    for (std::size_t r = 0; r < ranks; ++r)
      sent.push_back(send(before[r], destination[r], static_cast<int>(r), static_cast<std::int64_t>(ranks), width));
    std::vector<Picks> after;
    arrived_from.assign(ranks, Counts(ranks));
    for (std::size_t r = 0; r < ranks; ++r) {
      Ids packed;
      std::int64_t rows = 0;
      for (std::size_t turn = 0; turn < ranks; ++turn) {
        const std::size_t s = turn + 1 == ranks ? r : turn < r ? turn : turn + 1;
        std::int64_t at = 0;  // in the send order of s: rising, s last
        for (std::size_t d = 0; d < ranks; ++d)
          if (s == r ? d != r : d != s && d < r) at += sent[s].counts[2 * d + 1];
        const Ids piece = part(sent[s].packed, at, sent[s].counts[2 * r + 1]);
        packed.insert(packed.end(), piece.begin(), piece.end());
        arrived_from[r][s] = sent[s].counts[2 * r];
        rows += sent[s].counts[2 * r];
      }
      after.push_back(unpack(packed, rows));
    }
    return after;
  }
};

Ids random_picks(std::mt19937& gen, std::int64_t tokens, std::int64_t experts, std::int64_t k) {
  Ids all(idx(experts)), picks;
  std::iota(all.begin(), all.end(), 0);
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t j = 0; j < k; ++j)  // some experts are favourites
      std::swap(
          all[idx(j)],
          all[idx(j + static_cast<std::int64_t>(gen() % (gen() % 2 == 0 ? experts - j : 1 + (experts - j) / 4)))]);
    picks.insert(picks.end(), all.begin(), all.begin() + k);
  }
  return picks;
}

struct Mesh {
  int ranks, per_node;
  std::int64_t experts, k;
  int tokens;  ///< at most, of a rank
};

void PrintTo(const Mesh& m, std::ostream* out) {
  *out << m.ranks << " ranks, " << m.per_node << " a node, " << m.k << " of " << m.experts << ", " << m.tokens
       << " tokens";
}

TEST_F(DispatchPlanTest, PlansOfMeshesAreTheCpus) {
  for (const Mesh& m : {Mesh{1, 1, 4, 2, 9}, Mesh{1, 1, 512, 8, 70}, Mesh{2, 1, 17, 3, 60}, Mesh{3, 2, 9, 9, 40},
                        Mesh{4, 2, 127, 8, 60}, Mesh{5, 2, 31, 1, 50}, Mesh{8, 4, 40, 8, 60}, Mesh{6, 3, 23, 5, 1},
                        Mesh{3, 2, 8, 2, 0}, Mesh{8, 4, 64, 40, 20}})
    for (unsigned seed = 1; seed <= 2; ++seed) {
      SCOPED_TRACE(::testing::PrintToString(m) + ", seed " + std::to_string(seed));
      std::mt19937 gen(seed);
      // Experts anywhere; in two hops a row goes to the rank of the node that has as many experts' first.
      Ids rank_of;
      for (std::int64_t e = 0; e < m.experts; ++e) rank_of.push_back(static_cast<std::int32_t>(gen() % idx(m.ranks)));
      const auto node = [&](int rank) { return rank / m.per_node; };
      std::vector<Picks> tokens(idx(m.ranks));
      std::vector<Ids> gateways, direct(idx(m.ranks), rank_of);
      for (int r = 0; r < m.ranks; ++r) {
        const int count = m.tokens == 0 || r == 2 ? 0 : 1 + static_cast<int>(gen() % idx(m.tokens));
        Picks& p = tokens[idx(r)];
        p.experts = random_picks(gen, count, m.experts, m.k);
        const Tensor first = garbage(DType::I32, {count + 1}), host({}, DType::I32, {count + 1});
        ops::first_picks(gpu, first, m.k);
        ops::first_picks(cpu, host, m.k);
        p.first = down<std::int32_t>(first);
        ASSERT_EQ(p.first, values_of<std::int32_t>(host));
        Ids to;
        for (const std::int32_t d : rank_of)
          to.push_back(node(d) == node(r) ? d : std::min(node(d) * m.per_node + r % m.per_node, m.ranks - 1));
        gateways.push_back(to);
      }
      for (const bool two_level : {false, true}) {
        std::vector<Counts> from;
        std::vector<Picks> rows = tokens;
        if (two_level) rows = hop(rows, gateways, m.k, from);
        rows = hop(rows, direct, m.k, from);
        for (int r = 0; r < m.ranks; ++r) {
          Ids local(idx(m.experts), -1);
          std::int32_t held = 0;
          for (std::size_t e = 0; e < local.size(); ++e)
            if (rank_of[e] == r) local[e] = held++;
          sort(rows[idx(r)], from[idx(r)], &local, held, r,
               std::max<std::int64_t>(1, std::min<std::int64_t>(m.k, held)));
        }
      }
    }
}

// More rows than chunks of the least size, so that a warp has more than 32.
TEST_F(DispatchPlanTest, ManyRows) {
  std::mt19937 gen(5);
  constexpr std::int64_t kTokens = 36000;
  Picks p;
  p.experts = random_picks(gen, kTokens, 24, 2);
  for (std::int64_t t = 0; t < kTokens; ++t) p.first.push_back(static_cast<std::int32_t>(2 * t + 2));
  Ids to;
  for (int e = 0; e < 24; ++e) to.push_back(e / 8);
  send(p, to, 1, 3, 2);
  sort(p, {kTokens}, nullptr, 24, 0, 2);
  sort(p, {10000, 16001, 9999}, nullptr, 24, 1, 3);
}

TEST_F(DispatchPlanTest, RowsOfAnyNumberOfPicks) {  // even of none
  std::mt19937 gen(6);
  for (int round = 0; round < 10; ++round) {
    Picks p;
    const int rows = static_cast<int>(gen() % 200);
    for (int r = 0; r < rows; ++r) {
      const Ids own = random_picks(gen, 1, 60, static_cast<std::int64_t>(gen() % (r % 50 == 7 ? 60 : 6)));
      p.experts.insert(p.experts.end(), own.begin(), own.end());
      p.first.push_back(static_cast<std::int32_t>(p.experts.size()));
    }
    Ids to;
    for (int e = 0; e < 60; ++e) to.push_back(static_cast<std::int32_t>(gen() % 7));
    send(p, to, static_cast<int>(gen() % 7), 7, 7);
    if (round % 5 == 0) send(p, to, static_cast<int>(gen() % 1000), 1000, 8);
    const std::int64_t a = rows / 3, b = rows / 4;
    sort(p, {a, b, rows - a - b}, nullptr, 60, static_cast<int>(gen() % 3), 60);
  }
}

TEST_F(DispatchPlanTest, SumsOfCounts) {
  std::mt19937 gen(9);
  for (const std::int64_t n : {0, 1, 3, 700}) {
    Ids first{0}, index;
    Counts in(97), expected;
    for (std::int64_t& x : in) x = static_cast<std::int64_t>(gen()) << 20;
    for (std::int64_t i = 0; i < n; ++i) {
      std::int64_t sum = 0;
      for (auto left = gen() % 5; left > 0; --left) {
        index.push_back(static_cast<std::int32_t>(gen() % in.size()));
        sum += in[idx(index.back())];
      }
      first.push_back(static_cast<std::int32_t>(index.size()));
      expected.push_back(sum);
    }
    const Tensor numbers = line(in), begin = line(first), at = line(index), host = line(Counts(idx(n), -1));
    ops::sum_counts(cpu, host, numbers, begin, at);
    EXPECT_EQ(values_of<std::int64_t>(host), expected);
    const Tensor out = garbage(DType::I64, {n});
    ops::sum_counts(gpu, out, up(numbers), up(begin), up(at));
    EXPECT_EQ(down<std::int64_t>(out), expected);
  }
}

TEST_F(DispatchPlanTest, WhatPoolsReach) {
  std::mt19937 gen(7);
  for (const auto& [documents, longest, experts, ranks] :
       {std::tuple{0, 0, 5, 2}, {1, 1, 1, 1}, {40, 1, 31, 4}, {17, 90, 127, 8}, {3, 700, 12, 40}, {300, 3, 512, 64}})
    for (int variant = 0; variant < 6; ++variant) {
      SCOPED_TRACE(::testing::Message() << documents << " documents, " << experts << " experts on " << ranks
                                        << " ranks, variant " << variant);
      Ids at{0}, to;
      for (int d = 0; d < documents; ++d) at.push_back(at.back() + static_cast<std::int32_t>(gen() % idx(longest + 1)));
      for (int e = 0; e < experts; ++e) to.push_back(static_cast<std::int32_t>(gen() % idx(ranks)));
      std::vector<std::uint8_t> mask, free;
      for (int i = 0; i < documents * experts; ++i) mask.push_back(gen() % idx(1 + experts / 4) == 0 ? 1 : 0);
      for (int t = 0; t < at.back(); ++t) free.push_back(variant < 4 ? gen() % 3 == 0 : 0);
      const Tensor pool = variant % 2 == 0 ? tensor_of(mask, {documents, experts}) : Tensor();
      const Tensor flags = variant < 2 ? Tensor() : line(free), segments = line(at), destination = line(to);
      const Tensor device_pool = pool.view().null() ? Tensor() : up(pool),
                   device_flags = flags.view().null() ? Tensor() : up(flags);
      const Tensor limit = line(Counts(idx(ranks), -1)), reached = line(Counts{-1});
      const Tensor got = garbage(DType::I64, {ranks}), got_reached = garbage(DType::I64, {1});
      ops::pool_reach(cpu, limit, reached, pool, segments, destination, flags);
      ops::pool_reach(gpu, got, got_reached, device_pool, up(segments), up(destination), device_flags);
      EXPECT_EQ(down<std::int64_t>(got), values_of<std::int64_t>(limit));
      EXPECT_EQ(down<std::int64_t>(got_reached), values_of<std::int64_t>(reached));
      EXPECT_EQ(fault(), std::nullopt);
    }
}

TEST_F(DispatchPlanTest, ContradictionsAreFaults) {
  using ops::Fault;
  using ops::Op;
  const auto unpacked = [&](const Ids& packed, std::int64_t rows) {
    const Tensor experts = garbage(DType::I32, {static_cast<std::int64_t>(packed.size())}),
                 first = garbage(DType::I32, {rows + 1});
    ops::unpack_picks(gpu, picks(experts, first), up(line(packed)));
    for (const std::int32_t f : down<std::int32_t>(first))
      EXPECT_TRUE(f >= 0 && f <= static_cast<int>(packed.size())) << f;
    return fault();
  };
  EXPECT_EQ(unpacked({3, 4, 5}, 3), (Fault{Op::unpack_picks, 1, 2}));  // two rows, three announced
  EXPECT_EQ(unpacked({3, 5, 5}, 2), (Fault{Op::unpack_picks, 1, 2}));  // three rows, two announced
  EXPECT_EQ(unpacked({2, 5}, 1), (Fault{Op::unpack_picks, 2, 0}));     // a pick before the first row
  EXPECT_EQ(unpacked({}, 2), (Fault{Op::unpack_picks, 1, 0}));

  const Tensor first = up(line(Ids{0, 2, 3})), from = up(line(Counts{2}));
  const auto sorted = [&](const Ids& experts, const Tensor& firsts, const Tensor& source, const Ids& map,
                          std::int64_t width) {
    const auto n = static_cast<std::int64_t>(experts.size());
    const Tensor offsets = garbage(DType::I64, {3}), row = garbage(DType::I32, {n}), pick = garbage(DType::I32, {n}),
                 slots = garbage(DType::I32, {2, width});
    ops::plan_experts(gpu, {offsets, row, pick, slots}, picks(up(line(experts)), firsts), source, up(line(map)), 0);
    return fault();
  };
  EXPECT_EQ(sorted({0, 1, 0}, first, from, {0, 1, -1}, 2), std::nullopt);
  EXPECT_EQ(sorted({0, 2, 0}, first, from, {0, 1, -1}, 2), (Fault{Op::plan_experts, 2, 1}));  // not on this rank
  EXPECT_EQ(sorted({0, 1, 2}, first, from, {0, 1}, 2), (Fault{Op::plan_experts, 2, 2}));      // no expert 2
  EXPECT_EQ(sorted({0, 1, -5}, first, from, {0, 1}, 2), (Fault{Op::plan_experts, 2, 2}));
  EXPECT_EQ(sorted({0, 1, 0}, first, from, {0, 1}, 1), (Fault{Op::plan_experts, 1, 0}));  // two experts, room for one
  EXPECT_EQ(sorted({0, 1, 0}, first, up(line(Counts{3})), {0, 1}, 2), (Fault{Op::plan_experts, 3, 0}));
  EXPECT_EQ(sorted({0, 1, 0}, up(line(Ids{0, 2, 1 << 30})), from, {0, 1}, 2), (Fault{Op::plan_experts, 2, 1}));
  EXPECT_EQ(sorted({0, 1, 0}, up(line(Ids{-4, 0, 3})), from, {0, 1}, 3), (Fault{Op::plan_experts, 2, 0}));

  const auto sent = [&](const Ids& experts, const Ids& to, const Counts& counted, std::int64_t rows,
                        std::int64_t width) {
    const auto n = static_cast<std::int64_t>(experts.size()), ranks = static_cast<std::int64_t>(counted.size()) / 2;
    const Tensor row = garbage(DType::I32, {rows}), pick = garbage(DType::I32, {n}), packed = garbage(DType::I32, {n}),
                 slots = garbage(DType::I32, {2, width}), counts = up(tensor_of(counted, {ranks, 2}));
    ops::plan_send(gpu, {row, pick, packed, slots}, picks(up(line(experts)), first), up(line(to)), counts, 0);
    return fault();
  };
  EXPECT_EQ(sent({0, 1, 0}, {0, 1}, {2, 2, 1, 1}, 3, 2), std::nullopt);
  EXPECT_EQ(sent({0, 2, 0}, {0, 1}, {2, 2, 0, 0}, 2, 2), (Fault{Op::plan_send, 2, 1}));
  EXPECT_EQ(sent({0, 1, 0}, {0, 2}, {2, 2, 0, 0}, 2, 2), (Fault{Op::plan_send, 3, 1}));
  EXPECT_EQ(sent({0, 1, 0}, {0, 1}, {2, 2, 1, 1}, 3, 1), (Fault{Op::plan_send, 1, 0}));  // two ranks, room for one
  EXPECT_EQ(sent({0, 1, 0}, {0, 1}, {2, 2, 1, 1}, 2, 2), (Fault{Op::plan_send, 1, 3}));  // three rows, room for two
  EXPECT_EQ(sent({0, 1, 0}, {0, 1}, {2, 2, 0, 1}, 3, 2), (Fault{Op::plan_send, 4, 2}));
  const Tensor counts = garbage(DType::I64, {2, 2});
  ops::count_destinations(gpu, counts, picks(up(line(Ids{0, 9, 1})), first), up(line(Ids{0, 1})));
  EXPECT_EQ(fault(), (Fault{Op::count_destinations, 2, 1}));
}

TEST_F(DispatchPlanTest, MoreKeysThanABlockHoldsIsAnError) {
  const Tensor counts = garbage(DType::I64, {1 << 14, 2});
  EXPECT_THROW(ops::count_destinations(gpu, counts, picks(up(line(Ids{0})), up(line(Ids{0, 1}))), up(line(Ids{0}))),
               ShapeError);
}

}  // namespace
}  // namespace emox::test
