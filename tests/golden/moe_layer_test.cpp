// The MoE layer: output and every gradient of a cotangent of the output and the two router losses. On one rank, and
// shared out over ranks.
#include <gtest/gtest.h>

#include <algorithm>

#include <fmt/format.h>

#include <numeric>

#include "launch/run/sharding.h"
#include "model/moe/moe_layer.h"
#include "runtime/core/idx.h"
#include "runtime/ops/basic.h"
#include "tests/support/golden.h"
#include "tests/support/golden_ranks.h"
#include "tests/support/reference.h"
#include "tests/support/support.h"

namespace emox::test {
namespace {

ModelConfig layer_config(GoldenCase& c) {
  ModelConfig m;
  m.layers = 1;
  m.d_model = c.integer("d_model");
  m.sequence_length = c.integer("sequence");
  m.num_experts = c.integer("experts");
  m.top_k = c.integer("top_k");
  m.shared_experts = c.integer("shared");
  m.expert_ff = c.integer("d_ff");
  m.eos = golden_eos_rule(c);
  const std::vector<std::int32_t> ids = c.tokens("token_ids.npy");
  m.vocab_size = *std::max_element(ids.begin(), ids.end()) + 1;
  return m;
}

// One expert's matrices: the case has all three as [F,D], the store has w2 as [D,F].
struct Matrix {
  const char* file;
  const char* name;
  bool transposed;
};
constexpr Matrix kMatrices[] = {{"w1", "gate_proj", false}, {"w2", "down_proj", true}, {"w3", "up_proj", false}};

template <typename T>
std::vector<T> transposed(const std::vector<T>& v, std::int64_t rows, std::int64_t columns) {
  std::vector<T> out;
  for (std::int64_t c = 0; c < columns; ++c)
    for (std::int64_t r = 0; r < rows; ++r) out.push_back(v[idx(r * columns + c)]);
  return out;
}

constexpr const char* kRouter = "model.layers.0.mlp.gate.weight";

std::string name_of(std::int64_t expert, const Matrix& m) {
  return fmt::format("model.layers.0.mlp.experts.{}.{}.weight", expert, m.name);
}

// What every rank reads.
struct Inputs {
  explicit Inputs(GoldenCase& c)
      : config(layer_config(c)),
        tokens(c.integer("batch") * config.sequence_length),
        ids(c.tokens("token_ids.npy")),
        sequences(golden_sequences(ids, config.sequence_length)),
        eos(static_cast<std::int32_t>(c.integer("eos"))),
        batch(make_micro_batch(config, eos, sequences)),
        pooled(c.has_file("draws.npy")),
        x(c.floats("x.npy")),
        dy(c.floats("output_cotangent.npy")),
        a(c.real("a")),
        b(c.real("b")),
        divisor(c.real("divisor")) {
    weights[kRouter] = c.floats("router_weight.npy");
    const std::int64_t d = config.d_model, f = config.expert_ff;
    for (const Matrix& m : kMatrices) {
      const std::vector<float> all = c.floats(fmt::format("{}.npy", m.file));
      for (std::int64_t e = 0; e < config.num_experts; ++e) {
        const std::vector<float> one(all.begin() + e * f * d, all.begin() + (e + 1) * f * d);
        weights[name_of(e, m)] = m.transposed ? transposed(one, f, d) : one;
      }
    }
    if (!pooled) return;
    c.expect_exact("segments.npy", golden_segments(batch, config.sequence_length));
    const std::vector<std::int64_t> draws = c.integers("draws.npy");
    if (draws.size() != batch.documents.size()) throw std::runtime_error("a draw for every segment");
    for (std::size_t i = 0; i < draws.size(); ++i) pools.record(0, batch.documents[i], {draws[i]});
    if (!c.has_file("free.npy")) return;
    const std::vector<std::int64_t> free = c.integers("free.npy");
    for (std::int64_t s = 0; s < c.integer("batch"); ++s)
      pools.record_free(s,
                        {free.begin() + s * config.sequence_length, free.begin() + (s + 1) * config.sequence_length});
  }

  ModelConfig config;
  std::int64_t tokens;
  std::vector<std::int32_t> ids;
  std::vector<SequenceInput> sequences;
  std::int32_t eos;
  MicroBatch batch;  ///< all of them
  bool pooled;
  RecordedPools pools;
  std::vector<float> x, dy;  ///< [T,D]
  double a, b, divisor;
  std::map<std::string, std::vector<float>> weights;
};

// What the ranks leave, in the order of the case's tokens.
struct Results {
  explicit Results(int ranks)
      : kept(1, ranks), ids(1, ranks), gates(1, ranks), y(1, ranks), dx(1, ranks), gradients(idx(ranks)) {}
  ByRank<std::int64_t> kept, ids;
  ByRank<double> gates, y, dx;
  double balance_loss = 0, router_z = 0;
  std::vector<GoldenTensors> gradients;
};

void run_rank(const Inputs& in, Context& ctx, Communicator& comm, const ParallelConfig& parallel, Results& into) {
  const ModelConfig& config = in.config;
  const std::int64_t d = config.d_model, n = config.routed_experts();
  Sharding sharding(comm, config, parallel);
  EXPECT_EQ(sharding.experts()->exchanges(), parallel.expert_parallel > 1);
  ParameterStore store;
  const MoeLayer layer(config, 0, store, *sharding.experts());
  store.allocate(ctx.device, true);
  for (const NamedParameter& p : store.named())
    ops::copy_from_host(ctx, store.weight(p.slot), in.weights.at(p.name).data());

  const auto sequences = static_cast<std::int64_t>(in.sequences.size());
  const Part part = part_of(sequences, comm);
  const MicroBatch batch = make_micro_batch(config, in.eos, part.of(in.sequences));
  DeviceBatch device_batch(ctx.device, batch.tokens);
  const PoolPlan pools{in.pooled ? &in.pools : nullptr, nullptr, 0};
  device_batch.upload(ctx, batch, draw_pools(config, batch.documents, pools));

  const std::int64_t most = most_of(sequences, comm.size()) * config.sequence_length;
  Arena arena = Arena::measuring(ctx.device);
  MoeLayer::Saved saved;
  MoeLayer::Scratch scratch;
  const auto reserve = [&] {
    saved = layer.reserve(arena, most);
    scratch = layer.reserve_scratch(arena, most);
    sharding.experts()->reserve(arena, most, config.routed_top_k(), d);
  };
  reserve();
  arena = Arena(ctx.device, arena.peak());
  reserve();
  const Tensor counts(ctx.device, DType::I64, {n}), p_sum(ctx.device, DType::F64, {n}),
      z_sum(ctx.device, DType::F64, {1}), used(ctx.device, DType::I64, {1});
  const LayerStatistics statistics{counts, p_sum, z_sum, used};

  const auto rows = [&](const std::vector<float>& all) {
    const auto mine = part.of(all, config.sequence_length * d);
    return on(ctx, tensor_of(std::vector<float>(mine.begin(), mine.end()), {batch.tokens, d}));
  };
  const Tensor x = rows(in.x), dy = rows(in.dy), y(ctx.device, DType::F32, {batch.tokens, d}),
               dx(ctx.device, DType::F32, {batch.tokens, d});
  layer.forward_add(ctx, y, saved, scratch, store, {x, device_batch, {}, &statistics});
  if (in.pooled)
    into.kept.put(0, comm.rank(), integers_of(scratch.pool.rows(0, static_cast<std::int64_t>(batch.documents.size()))));
  into.ids.put(0, comm.rank(), with_shared_ids(saved.route.ids.rows(0, batch.tokens), n, config.shared_experts));
  into.gates.put(0, comm.rank(), with_shared_gates(saved.route.gates.rows(0, batch.tokens), config.shared_experts));
  into.y.put(0, comm.rank(), ref::doubles(y));

  // The losses are of all tokens, whoever routed them.
  for (const Tensor* t : {&counts, &p_sum, &z_sum}) comm.all_reduce(*t);
  const GoldenBalance balance =
      golden_balance(counts, p_sum, config.routed_top_k(), static_cast<double>(in.tokens), in.divisor, in.a);
  if (comm.rank() == 0) {
    into.balance_loss = balance.loss;
    into.router_z = ref::doubles(z_sum).front() / in.divisor;
  }
  const Tensor balance_gradient = on(ctx, tensor_of(balance.gradient, {n}));
  layer.backward(ctx, dx, saved, scratch, store, {x, dy, {balance_gradient, static_cast<float>(in.b / in.divisor)}});
  into.dx.put(0, comm.rank(), ref::doubles(dx));
  into.gradients[idx(comm.rank())] = golden_gradients(store);
}

void expect_weight_gradients(GoldenCase& c, const ModelConfig& config, const GoldenTensors& gradients) {
  c.expect_close("grad_router_weight.npy", gradients.at(kRouter).values);
  for (const Matrix& m : kMatrices) {
    std::vector<double> all;
    for (std::int64_t e = 0; e < config.num_experts; ++e) {
      std::vector<double> one = gradients.at(name_of(e, m)).values;
      if (m.transposed) one = transposed(one, config.d_model, config.expert_ff);
      all.insert(all.end(), one.begin(), one.end());
    }
    c.expect_close(fmt::format("grad_{}.npy", m.file), all);
  }
}

void expect_results(GoldenCase& c, const Inputs& in, const Results& r) {
  if (c.has_file("kept.npy")) c.expect_exact("kept.npy", r.kept.all());
  c.expect_exact("topk_ids.npy", r.ids.all());
  c.expect_close("gates.npy", r.gates.all());
  const std::vector<double> y = r.y.all();
  c.expect_close("y.npy", y);
  c.expect_scalar("balance_loss", r.balance_loss);
  c.expect_scalar("router_z", r.router_z);
  const double along = std::inner_product(y.begin(), y.end(), in.dy.begin(), 0.0);
  c.expect_scalar("objective", along + in.a * r.balance_loss + in.b * r.router_z);
  c.expect_close("grad_x.npy", r.dx.all());
  expect_weight_gradients(c, in.config, sum_over_ranks(r.gradients));
}

void run_layer(GoldenCase& c) {
  const Inputs in(c);
  for (const GoldenMesh& mesh : golden_meshes(in.config)) {
    SCOPED_TRACE(mesh.text());
    Results results(mesh.ranks);
    run_on_mesh(mesh, [&](Context& ctx, Communicator& comm) { run_rank(in, ctx, comm, mesh.parallel(), results); });
    expect_results(c, in, results);
  }
}

TEST(Golden, MoeLayer) { for_each_golden_case(EMOX_SOURCE_DIR, "moe_layer", run_layer); }

}  // namespace
}  // namespace emox::test
