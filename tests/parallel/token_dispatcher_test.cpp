// Rows through the dispatchers, on ranks as threads, against sums written down token by token.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <random>
#include <set>

#include "parallel/expert/expert_parallel.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/ops/basic.h"
#include "tests/support/ranks.h"
#include "tests/support/support.h"

namespace emox {
namespace {

constexpr std::int64_t kWidth = 5;

struct Layout {
  std::string name;
  int ranks, per_node;
  std::int64_t experts, top_k;
  std::vector<std::int64_t> tokens;  ///< by rank
  bool random;
};

std::vector<Layout> layouts() {
  return {{"one", 1, 1, 6, 3, {7}, false},
          {"two", 2, 1, 6, 3, {7, 4}, true},
          {"three", 3, 2, 7, 2, {5, 0, 9}, true},
          {"four", 4, 2, 9, 4, {1, 8, 3, 6}, false},
          {"four on uneven nodes", 4, 3, 13, 5, {6, 6, 6, 6}, true},
          {"eight", 8, 4, 17, 6, {9, 0, 1, 5, 5, 5, 0, 12}, true},
          {"no tokens", 2, 1, 4, 2, {0, 0}, false}};
}

/// Everything random that a rank knows; the same generator on all ranks, so that each can work out the others'.
struct Inputs {
  std::vector<std::vector<std::int32_t>> ids;      ///< [ranks][T * k]
  std::vector<std::vector<float>> x, gates, dout;  ///< [ranks][...]
  std::vector<float> scale;                        ///< [experts] what an expert multiplies by
};

Inputs make_inputs(const Layout& l) {
  std::mt19937 gen(17);
  std::normal_distribution<float> normal;
  Inputs in;
  for (const std::int64_t tokens : l.tokens) {
    std::vector<std::int32_t> ids;
    for (std::int64_t t = 0; t < tokens; ++t) {
      std::vector<std::int32_t> all(idx(l.experts));
      for (std::size_t e = 0; e < all.size(); ++e) all[e] = static_cast<std::int32_t>(e);
      std::shuffle(all.begin(), all.end(), gen);
      ids.insert(ids.end(), all.begin(), all.begin() + l.top_k);
    }
    in.ids.push_back(ids);
    const auto draw = [&](std::int64_t n) {
      std::vector<float> v;
      for (std::int64_t i = 0; i < n; ++i) v.push_back(normal(gen));
      return v;
    };
    in.x.push_back(draw(tokens * kWidth));
    in.dout.push_back(draw(tokens * kWidth));
    in.gates.push_back(draw(tokens * l.top_k));
  }
  for (std::int64_t e = 0; e < l.experts; ++e) in.scale.push_back(1.0F + static_cast<float>(e));
  return in;
}

struct Outputs {
  std::vector<float> out, dx, dgates;
  DispatchCounters counters;
  std::vector<std::int64_t> offsets;
};

// One layer: expert e maps a row to gate * scale[e] * row; its backward pass multiplies by the same.
Outputs run_rank(const Layout& l, const Inputs& in, Communicator& comm, DispatchKind kind) {
  const auto me = idx(comm.rank());
  const std::int64_t tokens = l.tokens[me], k = l.top_k;
  Context ctx;
  const ExpertPlacement placement =
      l.random ? ExpertPlacement::random(1, l.experts, l.ranks, 3) : ExpertPlacement::block(1, l.experts, l.ranks);
  ExpertParallel experts(comm, placement, kind);
  const auto dispatcher = experts.make_dispatcher(0, k);
  const std::int64_t room = l.ranks == 1 ? tokens : 1;  // with others, everything has to grow
  Arena arena = Arena::measuring();
  (void)dispatcher->reserve(arena, room);
  Arena memory({}, arena.peak());
  const auto handle = dispatcher->reserve(memory, room);
  experts.reserve(memory, 1, k, kWidth);

  const Tensor x = test::tensor_of(in.x[me], {tokens, kWidth}), gates = test::tensor_of(in.gates[me], {tokens, k}),
               dout = test::tensor_of(in.dout[me], {tokens, kWidth}), ids = test::tensor_of(in.ids[me], {tokens, k});
  const Tensor out({}, DType::F32, {tokens, kWidth}), dx({}, DType::F32, {tokens, kWidth}),
      dgates({}, DType::F32, {tokens, k});
  dispatcher->plan(ctx, *handle, ids, gates, {});
  const std::int64_t rows = handle->rows;
  const Tensor in_rows({}, DType::F32, {rows, kWidth}), row_gates({}, DType::F32, {rows}),
      drow_gates({}, DType::F32, {rows});
  const std::vector<std::int32_t> held = placement.experts_of(0, comm.rank());
  std::vector<std::int64_t> offsets;
  const auto for_rows = [&](const std::function<void(float scale, std::int64_t row)>& visit) {
    for (std::size_t e = 0; e < held.size(); ++e)
      for (std::int64_t r = offsets[e]; r < offsets[e + 1]; ++r) visit(in.scale[idx(held[e])], r);
  };
  dispatcher->dispatch_start(ctx, *handle, x);
  dispatcher->dispatch_finish(ctx, *handle, in_rows, row_gates);
  offsets = ops::to_host<std::int64_t>(ctx, handle->offsets);
  float* row = in_rows.view().data<float>();
  const float* gate = row_gates.view().data<float>();
  std::vector<float> sums(idx(rows), 0.0F);
  for_rows([&](float scale, std::int64_t r) {
    for (std::int64_t i = 0; i < kWidth; ++i) {
      sums[idx(r)] += row[r * kWidth + i];
      row[r * kWidth + i] *= scale * gate[r];
    }
  });
  dispatcher->combine(ctx, *handle, out, in_rows);
  dispatcher->combine_backward_start(ctx, *handle, dout);
  dispatcher->combine_backward_finish(ctx, *handle, in_rows);
  float* dgate = drow_gates.view().data<float>();
  for_rows([&](float scale, std::int64_t r) {
    float sum = 0;
    for (std::int64_t i = 0; i < kWidth; ++i) sum += row[r * kWidth + i];
    dgate[r] = scale * sum + sums[idx(r)];  // of both passes
    for (std::int64_t i = 0; i < kWidth; ++i) row[r * kWidth + i] *= scale * gate[r];
  });
  ops::fill(ctx, dx, 1.0F);
  dispatcher->dispatch_backward(ctx, *handle,
                                {.dx = dx, .beta = 2.0F, .dgates = dgates, .drows = in_rows, .drow_gates = drow_gates});
  return {test::values_of<float>(out), test::values_of<float>(dx), test::values_of<float>(dgates), experts.counters(),
          offsets};
}

void expect_near(const std::vector<float>& got, const std::vector<double>& want, const char* what) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); ++i)
    ASSERT_NEAR(got[i], want[i], 1e-5 * (1 + std::abs(want[i]))) << what << " " << i;
}

void expect_outputs(const Layout& l, const Inputs& in, std::size_t me, const Outputs& got) {
  const std::int64_t tokens = l.tokens[me], k = l.top_k;
  std::vector<double> out(idx(tokens * kWidth), 0.0), dx(out.size(), 2.0), dgates(idx(tokens * k), 0.0);
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t j = 0; j < k; ++j) {
      const auto slot = idx(t * k + j);
      const double scale = in.scale[idx(in.ids[me][slot])], gate = in.gates[me][slot];
      for (std::int64_t i = 0; i < kWidth; ++i) {
        const auto at = idx(t * kWidth + i);
        out[at] += scale * gate * in.x[me][at];
        dx[at] += scale * gate * in.dout[me][at];
        dgates[slot] += scale * in.dout[me][at] + in.x[me][at];
      }
    }
  expect_near(got.out, out, "out");
  expect_near(got.dx, dx, "dx");
  expect_near(got.dgates, dgates, "dgates");
}

// Bytes by definition: who sends what to whom, from the picks alone.
struct Bytes {
  double intra = 0, inter = 0, rows = 0, ranks = 0, nodes = 0;
};

Bytes expected_bytes(const Layout& l, const Inputs& in, DispatchKind kind) {
  const ExpertPlacement placement =
      l.random ? ExpertPlacement::random(1, l.experts, l.ranks, 3) : ExpertPlacement::block(1, l.experts, l.ranks);
  const auto rank_of = placement.of_layer(0);
  const auto node = [&](int r) { return r / l.per_node; };
  Bytes b;
  // A row goes and comes back in both passes; a pick's number goes once, its gate goes and its gradient comes back.
  constexpr double kRow = 4 * kWidth * sizeof(float), kPick = 3 * 4;
  const auto add = [&](int from, int to, double bytes) {
    if (from != to) (node(from) == node(to) ? b.intra : b.inter) += bytes;
  };
  for (int s = 0; s < l.ranks; ++s) {
    // Two counts for every peer that can be reached: all that hold an expert, or one gateway on each of their nodes and
    // those of the own node.
    std::set<int> holders(rank_of.begin(), rank_of.end()), gateways;
    for (const int d : holders) {
      int members = 0;
      for (int r = 0; r < l.ranks; ++r) members += node(r) == node(d) ? 1 : 0;
      gateways.insert(node(d) * l.per_node + s % l.per_node % members);
      if (kind == DispatchKind::Flat || node(d) == node(s)) add(s, d, 16.0);
    }
    if (kind == DispatchKind::TwoLevel)
      for (const int g : gateways) {  // and for every rank of its node
        double members = 0;
        for (int r = 0; r < l.ranks; ++r) members += node(r) == node(g) ? 1 : 0;
        add(s, g, 16.0 * (1 + members));
      }
    const auto me = idx(s);
    for (std::int64_t t = 0; t < l.tokens[me]; ++t) {
      std::set<int> ranks, nodes;
      for (std::int64_t j = 0; j < l.top_k; ++j) {
        const int d = rank_of[idx(in.ids[me][idx(t * l.top_k + j)])];
        ranks.insert(d);
        nodes.insert(node(d));
        if (kind == DispatchKind::Flat) {
          add(s, d, kPick);
          continue;
        }
        int members = 0, place = s % l.per_node;
        for (int r = 0; r < l.ranks; ++r) members += node(r) == node(d) ? 1 : 0;
        const int gateway = node(d) * l.per_node + place % members;
        add(s, gateway, kPick);
        add(gateway, d, kPick);
      }
      b.ranks += static_cast<double>(ranks.size());
      b.nodes += static_cast<double>(nodes.size());
      if (kind == DispatchKind::Flat) {
        for (const int d : ranks) add(s, d, kRow);
        continue;
      }
      for (const int n : nodes) {
        int members = 0;
        for (int r = 0; r < l.ranks; ++r) members += node(r) == n ? 1 : 0;
        const int gateway = n * l.per_node + s % l.per_node % members;
        add(s, gateway, kRow);
        for (const int d : ranks)
          if (node(d) == n) add(gateway, d, kRow);
      }
    }
  }
  return b;
}

TEST(TokenDispatchers, MoveRowsGatesAndTheirGradients) {
  for (const Layout& l : layouts())
    for (const DispatchKind kind : {DispatchKind::Flat, DispatchKind::TwoLevel}) {
      SCOPED_TRACE(l.name + (kind == DispatchKind::Flat ? ", flat" : ", two-level"));
      const Inputs in = make_inputs(l);
      std::vector<Outputs> outputs(idx(l.ranks)), again = outputs;
      ThreadWorld world(l.ranks, {.ranks_per_node = l.per_node});
      test::run_ranks(world, [&](Communicator& comm) {
        outputs[idx(comm.rank())] = run_rank(l, in, comm, kind);
        again[idx(comm.rank())] = run_rank(l, in, comm, kind);
      });
      DispatchCounters sum;
      for (std::size_t r = 0; r < outputs.size(); ++r) {
        expect_outputs(l, in, r, outputs[r]);
        EXPECT_EQ(outputs[r].out, again[r].out);
        EXPECT_EQ(outputs[r].dx, again[r].dx);
        EXPECT_EQ(outputs[r].dgates, again[r].dgates);
        for (std::size_t i = 0; i < sum.values.size(); ++i) sum.values[i] += outputs[r].counters.values[i];
      }
      if (l.ranks == 1) continue;
      const Bytes want = expected_bytes(l, in, kind);
      EXPECT_EQ(sum[DispatchCounters::BytesIntra], want.intra);
      EXPECT_EQ(sum[DispatchCounters::BytesInter], want.inter);
      EXPECT_EQ(sum[DispatchCounters::Ranks], want.ranks);
      EXPECT_EQ(sum[DispatchCounters::Nodes], want.nodes);
      double picks = 0;
      for (const auto& ids : in.ids) picks += static_cast<double>(ids.size());
      EXPECT_EQ(sum[DispatchCounters::ReceivedRows], picks);
    }
}

TEST(TokenDispatchers, LocalIsForOneRank) {
  ThreadWorld world(2);
  test::run_ranks(world, [&](Communicator& comm) {
    EXPECT_THROW(ExpertParallel(comm, ExpertPlacement::block(1, 4, 2), DispatchKind::Local), UsageError);
  });
}

}  // namespace
}  // namespace emox
