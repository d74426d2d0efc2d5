// The whole model on one micro-batch: logits, losses, routing, every gradient of the total loss. On one rank, and
// shared out over ranks.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "launch/run/run_start.h"
#include "launch/run/sharding.h"
#include "model/training/training_step.h"
#include "model/transformer/language_model.h"
#include "runtime/core/idx.h"
#include "runtime/ops/basic.h"
#include "tests/support/golden.h"
#include "tests/support/golden_ranks.h"
#include "tests/support/reference.h"
#include "tests/support/training.h"

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
    if (draws.size() != idx(config.layers) * docs) throw std::runtime_error("a draw for every layer and segment");
    for (std::size_t i = 0; i < docs; ++i) {
      std::vector<std::int64_t> sizes;
      for (std::int64_t l = 0; l < config.layers; ++l) sizes.push_back(draws[idx(l) * docs + i]);
      pools.record(0, batch.documents[i], sizes);
    }
  }
  std::int32_t eos;
  std::vector<std::int32_t> ids;
  std::vector<SequenceInput> sequences;
  MicroBatch batch;
  RecordedPools pools;
};

// What the ranks leave, in the order of the case's sequences.
struct Results {
  Results(std::int64_t layers, int ranks)
      : logits(1, ranks),
        ids(layers, ranks),
        gates(layers, ranks),
        ce(idx(ranks)),
        z(ce.size()),
        gradients(ce.size()) {}
  ByRank<double> logits;
  ByRank<std::int64_t> ids;
  ByRank<double> gates;
  std::vector<double> ce, z;  ///< by rank: sums over its tokens
  std::vector<double> balance_loss, router_z;
  std::vector<GoldenTensors> gradients;
};

// One rank's forward and backward pass over its sequences, call by call.
class ByHand {
 public:
  ByHand(GoldenCase& c, const ModelConfig& config, const Inputs& in, Context& ctx, Communicator& comm,
         LanguageModel& model)
      : config_(config),
        ctx_(ctx),
        comm_(comm),
        model_(model),
        divisor_(c.real("divisor")),
        z_weight_(c.real("lm_z_weight")),
        tokens_(in.batch.tokens),
        host_(make_micro_batch(config, in.eos,
                               part_of(static_cast<std::int64_t>(in.sequences.size()), comm).of(in.sequences))),
        pools_{config.pool == PoolMode::Off ? nullptr : &in.pools, nullptr, 0},
        counts_(ctx.device, DType::I64, {config.layers, routed()}),
        p_sum_(ctx.device, DType::F64, {config.layers, routed()}),
        z_sum_(ctx.device, DType::F64, {config.layers, 1}),
        used_(ctx.device, DType::I64, {config.layers, 1}) {
    const std::int64_t most =
        most_of(static_cast<std::int64_t>(in.sequences.size()), comm.size()) * config.sequence_length;
    arena_ = Arena::measuring(ctx.device);
    const auto reserve = [&] {
      activations_ = model.reserve(arena_, most);
      model.reserve_scratch(arena_, most);
    };
    reserve();
    arena_ = Arena(ctx.device, arena_.peak());
    reserve();
  }

  void run(Results& into) {
    const auto rank = idx(comm_.rank());
    DeviceBatch batch(ctx_.device, host_.tokens);
    batch.upload(ctx_, host_, draw_pools(config_, host_.documents, pools_));
    const RoutingStatistics statistics{counts_, p_sum_, z_sum_, used_};
    model_.forward(ctx_, activations_, batch, config_.is_moe() ? &statistics : nullptr);
    const Tensor logits(ctx_.device, DType::F32, {host_.tokens, config_.vocab_size});
    model_.logits(ctx_, logits, activations_, batch);
    into.logits.put(0, comm_.rank(), ref::doubles(logits));
    const Tensor sums(ctx_.device, DType::F64, {2});
    model_.loss(ctx_, activations_, batch,
                {.sums = sums, .gradient = true, .inverse_divisor = 1.0 / divisor_, .z_weight = z_weight_});
    into.ce[rank] = ref::doubles(sums)[0], into.z[rank] = ref::doubles(sums)[1];
    const Tensor balance(ctx_.device, DType::F32, {config_.layers, routed()});
    if (config_.is_moe()) {
      note_routing(into);
      reduce_statistics();
      balance_losses(balance, into);
    }
    const double per_layer = 1.0 / static_cast<double>(config_.layers);
    model_.backward(ctx_, activations_, batch,
                    {.balance = config_.is_moe() ? balance.view() : TensorView{},
                     .z = static_cast<float>(config_.router_z_weight * per_layer / divisor_)});
    into.gradients[rank] = golden_gradients(model_.parameters());
  }

 private:
  std::int64_t routed() const { return config_.is_moe() ? config_.routed_experts() : 0; }

  void note_routing(Results& into) const {
    std::int64_t l = 0;
    for (const Activations::Block& block : activations_.blocks) {
      const ops::TopkResult& r = block.moe.route;
      into.ids.put(l, comm_.rank(),
                   with_shared_ids(r.ids.rows(0, host_.tokens), config_.routed_experts(), config_.shared_experts));
      into.gates.put(l++, comm_.rank(), with_shared_gates(r.gates.rows(0, host_.tokens), config_.shared_experts));
    }
  }

  // The losses are of the whole batch, whoever routed its tokens.
  void reduce_statistics() {
    for (const Tensor* t : {&counts_, &p_sum_, &z_sum_}) comm_.all_reduce(*t);
  }

  void balance_losses(const Tensor& gradient, Results& into) const {
    const double weight = config_.balance_weight / static_cast<double>(config_.layers);
    for (std::int64_t l = 0; l < config_.layers; ++l) {
      const GoldenBalance b = golden_balance(counts_.view()[l], p_sum_.view()[l], config_.routed_top_k(),
                                             static_cast<double>(tokens_), divisor_, weight);
      ops::copy_from_host(ctx_, gradient.view()[l], b.gradient.data());
      if (comm_.rank() != 0) continue;
      into.balance_loss.push_back(b.loss);
      into.router_z.push_back(ref::doubles(z_sum_.view()[l]).front() / divisor_);
    }
  }

  const ModelConfig& config_;
  Context& ctx_;
  Communicator& comm_;
  LanguageModel& model_;
  double divisor_, z_weight_;
  std::int64_t tokens_;  ///< of the case
  MicroBatch host_;      ///< of this rank
  PoolPlan pools_;
  Tensor counts_, p_sum_, z_sum_, used_;
  Arena arena_{Device{}, 0};
  Activations activations_;
};

void expect_results(GoldenCase& c, const ModelConfig& config, const Results& r) {
  const double divisor = c.real("divisor"), per_layer = 1.0 / static_cast<double>(config.layers);
  const double ce = std::accumulate(r.ce.begin(), r.ce.end(), 0.0) / divisor,
               lm_z = c.real("lm_z_weight") * std::accumulate(r.z.begin(), r.z.end(), 0.0) / divisor;
  c.expect_close("logits.npy", r.logits.all());
  c.expect_scalar("ce", ce);
  c.expect_scalar("lm_z", lm_z);
  double total = ce + lm_z;
  if (config.is_moe()) {
    c.expect_exact("topk_ids.npy", r.ids.all());
    c.expect_close("gates.npy", r.gates.all());
    c.expect_close("balance_loss.npy", r.balance_loss);
    c.expect_close("router_z.npy", r.router_z);
    for (std::size_t l = 0; l < r.router_z.size(); ++l)
      total += per_layer * (config.balance_weight * r.balance_loss[l] + config.router_z_weight * r.router_z[l]);
  }
  c.expect_scalar("total", total);
  c.expect_tensors("grads.safetensors", sum_over_ranks(r.gradients));
}

// The training step, whose one micro-batch over all ranks is the whole batch.
Recipe training_recipe(GoldenCase& c, const ModelConfig& config, const Inputs& in) {
  Recipe recipe;
  recipe.model = config;
  recipe.model.balance_scope = BalanceScope::MicroBatch;
  recipe.train.batch_sequences = recipe.train.micro_batch_sequences = static_cast<std::int64_t>(in.sequences.size());
  recipe.train.lm_z_weight = c.real("lm_z_weight");
  return recipe;
}

struct StepResults {
  StepMetrics metrics;  ///< rank 0's: all have the same
  std::vector<GoldenTensors> gradients;
};

void run_on(GoldenCase& c, const ModelConfig& config, const Inputs& in, const GoldenMesh& mesh) {
  SCOPED_TRACE(mesh.text());
  // The training step counts all labels of its sequences: not the divisor of every conceivable case.
  const auto sequences = static_cast<std::int64_t>(in.sequences.size());
  const bool steps = c.integer("divisor") == sequences * (config.sequence_length - 1);
  Results results(config.layers, mesh.ranks);
  StepResults stepped{{}, std::vector<GoldenTensors>(idx(mesh.ranks))};
  run_on_mesh(mesh, [&](Context& ctx, Communicator& comm) {
    Sharding sharding(comm, config, mesh.parallel());
    LanguageModel model(config, ctx, true, sharding.experts());
    if (config.is_moe()) {
      EXPECT_EQ(model.experts()->exchanges(), mesh.expert_parallel > 1);
    }
    load_golden_weights(ctx, model.parameters(), c.path_of(c.text("parameters")));
    ByHand(c, config, in, ctx, comm, model).run(results);
    if (!steps) return;
    TrainingStep step(ctx, test::with_eos(step_config(training_recipe(c, config, in)), in.eos), model, sharding.mesh(),
                      {.pools = &in.pools});
    const StepMetrics m = step.compute_gradients(0, part_of(sequences, comm).of(in.sequences));
    step.optimizer().gather_gradients(ctx);
    stepped.gradients[idx(comm.rank())] = golden_gradients(model.parameters());
    if (comm.rank() == 0) stepped.metrics = m;
  });
  expect_results(c, config, results);
  if (!steps) return;
  SCOPED_TRACE("as a training step");
  c.expect_scalar("ce", stepped.metrics.ce);
  c.expect_scalar("lm_z", stepped.metrics.lm_z);
  c.expect_scalar("total", stepped.metrics.loss());
  c.expect_tensors("grads.safetensors", union_over_ranks(stepped.gradients));
}

void run_model(GoldenCase& c) {
  const ModelConfig config = golden_model_config(c);
  const Inputs in(c, config);
  for (const GoldenMesh& mesh : golden_meshes(config)) run_on(c, config, in, mesh);
}

TEST(Golden, Model) { for_each_golden_case(EMOX_SOURCE_DIR, "model", run_model); }

}  // namespace
}  // namespace emox::test
