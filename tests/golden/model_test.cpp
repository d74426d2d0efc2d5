// The whole model on one micro-batch: logits, losses, routing, every gradient of the total loss.
#include <gtest/gtest.h>

#include "launch/train/training_step.h"
#include "model/transformer/language_model.h"
#include "parallel/comm/communicator.h"
#include "tests/support/golden.h"
#include "tests/support/reference.h"
#include "tests/support/support.h"

namespace emox::test {
namespace {

// What every model case starts from.
struct Inputs {
  Inputs(GoldenCase& c, const ModelConfig& config)
      : eos(static_cast<std::int32_t>(c.integer("eos"))),
        ids(c.tokens("token_ids.npy")),
        sequences(golden_sequences(ids, config.sequence_length)),
        batch(make_micro_batch(config, eos, sequences)) {
    if (!c.has_file("draws.npy")) return;
    const std::vector<std::int64_t> draws = c.integers("draws.npy");  // [L,docs]
    c.expect_exact("segments.npy", golden_segments(batch, config.sequence_length));
    const std::size_t docs = batch.documents.size();
    if (draws.size() != static_cast<std::size_t>(config.layers) * docs)
      throw std::runtime_error("a draw for every layer and segment");
    for (std::size_t i = 0; i < docs; ++i) {
      std::vector<std::int64_t> sizes;
      for (std::int64_t l = 0; l < config.layers; ++l) sizes.push_back(draws[static_cast<std::size_t>(l) * docs + i]);
      pools.record(0, batch.documents[i], sizes);
    }
  }
  std::int32_t eos;
  std::vector<std::int32_t> ids;
  std::vector<SequenceInput> sequences;
  MicroBatch batch;
  RecordedPools pools;
};

void expect_routing(GoldenCase& c, const ModelConfig& config, const Activations& a) {
  std::vector<std::int64_t> ids;
  std::vector<double> gates;
  for (const Activations::Block& block : a.blocks) {
    const auto layer_ids = with_shared_ids(block.moe.route.ids, config.routed_experts(), config.shared_experts);
    const auto layer_gates = with_shared_gates(block.moe.route.gates, config.shared_experts);
    ids.insert(ids.end(), layer_ids.begin(), layer_ids.end());
    gates.insert(gates.end(), layer_gates.begin(), layer_gates.end());
  }
  c.expect_exact("topk_ids.npy", ids);
  c.expect_close("gates.npy", gates);
}

void run_by_hand(GoldenCase& c, Context& ctx, const ModelConfig& config, const Inputs& in, LanguageModel& model) {
  const std::int64_t tokens = in.batch.tokens, n = config.is_moe() ? config.routed_experts() : 0,
                     layers = config.layers;
  Arena arena = Arena::measuring();
  (void)model.reserve(arena, tokens);
  model.reserve_scratch(arena, tokens, ctx.threads);
  arena = Arena(ctx.device, arena.peak());
  Activations a = model.reserve(arena, tokens);
  model.reserve_scratch(arena, tokens, ctx.threads);
  DeviceBatch batch(ctx.device, tokens);
  batch.upload(ctx, in.batch);
  const Tensor counts({}, DType::I64, {layers, n}), p_sum({}, DType::F64, {layers, n}),
      z_sum({}, DType::F64, {layers, 1});
  const Tensor used({}, DType::I64, {layers, 1}), balance({}, DType::F32, {layers, n}),
      logits({}, DType::F32, {tokens, config.vocab_size});
  const RoutingStatistics statistics{counts, p_sum, z_sum, used};

  const PoolPlan pools{config.pool == PoolMode::Off ? nullptr : &in.pools, nullptr, 0};
  model.forward(ctx, a, batch, in.batch.documents, pools, config.is_moe() ? &statistics : nullptr);
  model.logits(ctx, logits, a, batch);
  c.expect_close("logits.npy", ref::doubles(logits));

  const double divisor = c.real("divisor"), per_layer = 1.0 / static_cast<double>(layers);
  const LossSums sums = model.loss(ctx, a, batch, true, 1.0 / divisor, c.real("lm_z_weight"), {});
  const double ce = sums.ce / divisor, lm_z = c.real("lm_z_weight") * sums.z / divisor;
  c.expect_scalar("ce", ce);
  c.expect_scalar("lm_z", lm_z);
  double total = ce + lm_z;
  if (config.is_moe()) {
    expect_routing(c, config, a);
    std::vector<double> lb, z;
    for (std::int64_t l = 0; l < layers; ++l) {
      const GoldenBalance b = golden_balance(counts.view()[l], p_sum.view()[l], config.routed_top_k(),
                                             static_cast<double>(tokens), divisor, config.balance_weight * per_layer);
      std::copy(b.gradient.begin(), b.gradient.end(), balance.view()[l].data<float>());
      lb.push_back(b.loss);
      z.push_back(ref::doubles(z_sum.view()[l]).front() / divisor);
      total += per_layer * (config.balance_weight * lb.back() + config.router_z_weight * z.back());
    }
    c.expect_close("balance_loss.npy", lb);
    c.expect_close("router_z.npy", z);
  }
  c.expect_scalar("total", total);
  model.backward(ctx, a, batch, config.is_moe() ? balance.view() : TensorView{},
                 static_cast<float>(config.router_z_weight * per_layer / divisor));
  c.expect_tensors("grads.safetensors", golden_gradients(model.parameters()));
}

// Once more by the training step, whose one micro-batch is the whole batch.
void run_as_training_step(GoldenCase& c, Context& ctx, ModelConfig config, const Inputs& in, LanguageModel& model) {
  SCOPED_TRACE("as a training step");
  Recipe recipe;
  config.balance_scope = BalanceScope::MicroBatch;
  recipe.model = config;
  recipe.train.batch_sequences = recipe.train.micro_batch_sequences = static_cast<std::int64_t>(in.sequences.size());
  recipe.train.lm_z_weight = c.real("lm_z_weight");
  const auto comm = make_self_communicator();
  ProcessMesh mesh(*comm, 1);
  TrainingStep step(ctx, recipe, model, mesh, &in.pools, 0, in.eos);
  const StepMetrics m = step.compute_gradients(0, in.sequences);
  c.expect_scalar("ce", m.ce);
  c.expect_scalar("lm_z", m.lm_z);
  c.expect_scalar("total", m.loss());
  c.expect_tensors("grads.safetensors", golden_gradients(model.parameters()));
}

void run_model(GoldenCase& c) {
  Context ctx = golden_context();
  const ModelConfig config = golden_model_config(c);
  const Inputs in(c, config);
  LanguageModel model(config, ctx, true);
  load_golden_weights(ctx, model.parameters(), c.path_of(c.text("parameters")));
  run_by_hand(c, ctx, config, in, model);
  // The training step counts all labels of its sequences: not the divisor of every conceivable case.
  const auto labels = static_cast<std::int64_t>(in.sequences.size()) * (config.sequence_length - 1);
  if (c.integer("divisor") == labels) run_as_training_step(c, ctx, config, in, model);
}

TEST(Golden, Model) { for_each_golden_case(EMOX_SOURCE_DIR, "model", run_model); }

}  // namespace
}  // namespace emox::test
