// The MoE layer: output and every gradient of a cotangent of the output and the two router losses.
#include <gtest/gtest.h>

#include <fmt/format.h>

#include "model/moe/moe_layer.h"
#include "runtime/ops/basic.h"
#include "tests/support/golden.h"
#include "tests/support/reference.h"
#include "tests/support/support.h"

namespace emox::test {
namespace {

ModelConfig layer_config(const GoldenCase& c) {
  ModelConfig m;
  m.layers = 1;
  m.d_model = c.integer("d_model");
  m.sequence_length = c.integer("sequence");
  m.num_experts = c.integer("experts");
  m.top_k = c.integer("top_k");
  m.shared_experts = c.integer("shared");
  m.expert_ff = c.integer("d_ff");
  m.eos = golden_eos_rule(c);
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
    for (std::int64_t r = 0; r < rows; ++r) out.push_back(v[static_cast<std::size_t>(r * columns + c)]);
  return out;
}

ParameterSlot slot_of(const ParameterStore& store, const std::string& name) {
  for (const NamedParameter& p : store.named())
    if (p.name == name) return p.slot;
  throw std::runtime_error("no parameter " + name);
}

ParameterSlot expert_slot(const ParameterStore& store, std::int64_t expert, const Matrix& m) {
  return slot_of(store, fmt::format("model.layers.0.mlp.experts.{}.{}.weight", expert, m.name));
}

void load_layer(GoldenCase& c, Context& ctx, const ModelConfig& config, const ParameterStore& store) {
  const std::int64_t d = config.d_model, f = config.expert_ff;
  ops::copy_from_host(ctx, store.weight(slot_of(store, "model.layers.0.mlp.gate.weight")),
                      c.floats("router_weight.npy").data());
  for (const Matrix& m : kMatrices) {
    const std::vector<float> all = c.floats(fmt::format("{}.npy", m.file));
    for (std::int64_t e = 0; e < config.num_experts; ++e) {
      std::vector<float> one(all.begin() + e * f * d, all.begin() + (e + 1) * f * d);
      if (m.transposed) one = transposed(one, f, d);
      ops::copy_from_host(ctx, store.weight(expert_slot(store, e, m)), one.data());
    }
  }
}

void expect_weight_gradients(GoldenCase& c, const ModelConfig& config, const ParameterStore& store) {
  c.expect_close("grad_router_weight.npy", ref::doubles(store.grad(slot_of(store, "model.layers.0.mlp.gate.weight"))));
  for (const Matrix& m : kMatrices) {
    std::vector<double> all;
    for (std::int64_t e = 0; e < config.num_experts; ++e) {
      std::vector<double> one = ref::doubles(store.grad(expert_slot(store, e, m)));
      if (m.transposed) one = transposed(one, config.d_model, config.expert_ff);
      all.insert(all.end(), one.begin(), one.end());
    }
    c.expect_close(fmt::format("grad_{}.npy", m.file), all);
  }
}

// The pool masks, as the layer leaves them.
void expect_pools(GoldenCase& c, const MoeLayer::Scratch& scratch, const MicroBatch& batch) {
  c.expect_exact("segments.npy", golden_segments(batch, c.integer("sequence")));
  if (c.has_file("kept.npy"))
    c.expect_exact("kept.npy", integers_of(scratch.pool.rows(0, static_cast<std::int64_t>(batch.documents.size()))));
}

void run_layer(GoldenCase& c) {
  Context ctx = golden_context();
  const ModelConfig config = layer_config(c);
  const std::int64_t tokens = c.integer("batch") * c.integer("sequence"), d = config.d_model,
                     n = config.routed_experts();
  ParameterStore store;
  ExpertParallel experts(1, n);
  const MoeLayer layer(config, 0, store, experts);
  store.allocate(ctx.device, true);
  load_layer(c, ctx, config, store);

  const std::vector<std::int32_t> ids = c.tokens("token_ids.npy");
  const MicroBatch batch = make_micro_batch(config, static_cast<std::int32_t>(c.integer("eos")),
                                            golden_sequences(ids, config.sequence_length));
  DeviceBatch device_batch(ctx.device, tokens);
  device_batch.upload(ctx, batch);
  RecordedPools pools;
  const bool pooled = c.has_file("draws.npy");
  if (pooled) {
    const std::vector<std::int64_t> draws = c.integers("draws.npy");
    ASSERT_EQ(draws.size(), batch.documents.size());
    for (std::size_t i = 0; i < draws.size(); ++i) pools.record(0, batch.documents[i], {draws[i]});
  }

  Arena arena = Arena::measuring();
  (void)layer.reserve(arena, tokens);
  (void)layer.reserve_scratch(arena, tokens);
  arena = Arena(ctx.device, arena.peak());
  MoeLayer::Saved saved = layer.reserve(arena, tokens);
  const MoeLayer::Scratch scratch = layer.reserve_scratch(arena, tokens);
  const Tensor counts({}, DType::I64, {n}), p_sum({}, DType::F64, {n}), z_sum({}, DType::F64, {1}),
      used({}, DType::I64, {1});
  const LayerStatistics statistics{counts, p_sum, z_sum, used};

  const Tensor x = tensor_of(c.floats("x.npy"), {tokens, d}), y({}, DType::F32, {tokens, d});
  layer.forward_add(ctx, y, x, saved, scratch, device_batch, batch.documents, {pooled ? &pools : nullptr, nullptr, 0},
                    {}, &statistics, store);
  if (pooled) expect_pools(c, scratch, batch);
  c.expect_exact("topk_ids.npy", with_shared_ids(saved.route.ids, n, config.shared_experts));
  c.expect_close("gates.npy", with_shared_gates(saved.route.gates, config.shared_experts));
  c.expect_close("y.npy", ref::doubles(y));

  const double a = c.real("a"), b = c.real("b"), divisor = c.real("divisor"), z = ref::doubles(z_sum).front() / divisor;
  const GoldenBalance balance =
      golden_balance(counts, p_sum, config.routed_top_k(), static_cast<double>(tokens), divisor, a);
  const Tensor dy = tensor_of(c.floats("output_cotangent.npy"), {tokens, d}), dx({}, DType::F32, {tokens, d});
  c.expect_scalar("balance_loss", balance.loss);
  c.expect_scalar("router_z", z);
  c.expect_scalar("objective", ref::dot(ref::doubles(y), ref::doubles(dy)) + a * balance.loss + b * z);

  const Tensor balance_gradient = tensor_of(balance.gradient, {n});
  layer.backward(ctx, dx, dy, x, saved, scratch, {balance_gradient, static_cast<float>(b / divisor)}, store);
  c.expect_close("grad_x.npy", ref::doubles(dx));
  expect_weight_gradients(c, config, store);
}

TEST(Golden, MoeLayer) { for_each_golden_case(EMOX_SOURCE_DIR, "moe_layer", run_layer); }

}  // namespace
}  // namespace emox::test
