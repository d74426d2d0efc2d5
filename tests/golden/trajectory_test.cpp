// Whole training runs, step by step: on one rank, with the micro-batches' activations held and computed again, and on
// 2 and 4 ranks.
#include <gtest/gtest.h>

#include "launch/run/run_start.h"
#include "launch/run/sharding.h"
#include "model/optim/schedule.h"
#include "model/training/training_step.h"
#include "model/transformer/language_model.h"
#include "runtime/core/idx.h"
#include "tests/support/golden.h"
#include "tests/support/golden_ranks.h"
#include "tests/support/reference.h"
#include "tests/support/training.h"

namespace emox::test {
namespace {

struct Trajectory {
  explicit Trajectory(GoldenCase& c) : model(golden_model_config(c)) {
    eos = static_cast<std::int32_t>(c.integer("eos"));
    steps = c.integer("steps"), micro = c.integer("micro_batches"), rows = c.integer("batch");
    const std::string scope = c.text("balance_scope");
    if (scope != "micro" && scope != "step") throw std::runtime_error("balance_scope = " + scope);
    model.balance_scope = scope == "micro" ? BalanceScope::MicroBatch : BalanceScope::Step;
    parameters = c.path_of(c.text("parameters"));
    ids = c.tokens("token_ids.npy");
    train.steps = steps, train.batch_sequences = micro * rows;
    train.learning_rate = c.real("peak_lr"), train.warmup_steps = c.integer("warmup"),
    train.min_lr_ratio = c.real("lr_floor");
    train.weight_decay = c.real("weight_decay"), train.clip_norm = c.real("clip"),
    train.lm_z_weight = c.real("lm_z_weight");
    train.beta1 = c.real("beta1"), train.beta2 = c.real("beta2"), train.eps = c.real("eps");
    record_pools(c);
  }

  std::vector<SequenceInput> sequences(std::int64_t step) const {
    const std::int64_t n = train.batch_sequences * model.sequence_length;
    return golden_sequences(std::span(ids).subspan(idx(step * n), idx(n)), model.sequence_length);
  }

  ModelConfig model;
  TrainConfig train;
  std::filesystem::path parameters;
  std::int32_t eos = 0;
  std::int64_t steps = 0, micro = 0, rows = 0;  ///< rows of a micro-batch
  std::vector<std::int32_t> ids;                ///< [steps, micro, rows, S]
  RecordedPools pools;                          ///< by step (from 1), layer, sequence of the step, document

 private:
  void record_pools(GoldenCase& c) {
    if (model.pool == PoolMode::Off) return;
    const std::vector<std::int64_t> draws = c.integers("draws.npy");  // [all documents, L]
    std::vector<std::int64_t> segments;
    auto draw = draws.begin();
    for (std::int64_t s = 0; s < steps; ++s) {
      const std::vector<SequenceInput> all = sequences(s);
      for (std::int64_t m = 0; m < micro; ++m) {
        const MicroBatch batch = make_micro_batch(model, eos, std::span(all).subspan(idx(m * rows), idx(rows)));
        const std::vector<std::int64_t> found = golden_segments(batch, model.sequence_length);
        for (std::size_t i = 0; i < batch.documents.size(); ++i) {
          segments.insert(segments.end(), {s, m, found[3 * i], found[3 * i + 1], found[3 * i + 2]});
          if (draws.end() - draw < model.layers) throw std::runtime_error("fewer draws than documents");
          pools.record(s + 1, batch.documents[i], {draw, draw + model.layers});
          draw += model.layers;
        }
      }
    }
    EXPECT_TRUE(draw == draws.end());
    c.expect_exact("segments.npy", segments);
  }
};

// What a run leaves; ranks write to different elements of topk_ids.
struct Result {
  std::vector<double> ce, lm_z, balance_sum, router_z_sum, total, grad_norm, lr;
  std::vector<std::int64_t> topk_ids;  ///< [steps, micro, L, rows, S, k]
  GoldenTensors weights;
};

// How a rank takes its sequences of a step: `local`, `micro_batch` at a time.
struct Share {
  std::vector<SequenceInput> local;
  std::int64_t micro_batch = 0;
};

// Under step scope the ranks share out the sequences in order. Under micro_batch scope each takes its rows of every
// micro-batch, so that the ranks' m-th micro-batches are together the recorded one.
Share share_of(const Trajectory& t, const std::vector<SequenceInput>& all, const Communicator& comm) {
  Share s;
  const std::int64_t rank = comm.rank(), size = comm.size();
  if (t.model.balance_scope == BalanceScope::Step) {
    const auto n = static_cast<std::int64_t>(all.size());
    s.local.assign(all.begin() + n * rank / size, all.begin() + n * (rank + 1) / size);
    s.micro_batch = t.rows;
    return s;
  }
  s.micro_batch = t.rows / size;
  for (std::int64_t m = 0; m < t.micro; ++m) {
    const auto row = all.begin() + m * t.rows + rank * s.micro_batch;
    s.local.insert(s.local.end(), row, row + s.micro_batch);
  }
  return s;
}

using LayerIds = std::vector<std::vector<std::int64_t>>;  // by layer: [T,k]

LayerIds layer_ids(const Trajectory& t, const Activations& a, std::int64_t tokens) {
  LayerIds ids;
  if (!t.model.is_moe()) return ids;
  for (const Activations::Block& b : a.blocks)
    ids.push_back(with_shared_ids(b.moe.route.ids.rows(0, tokens), t.model.routed_experts(), t.model.shared_experts));
  return ids;
}

class Rank {
 public:
  Rank(Context& ctx, const Trajectory& t, Communicator& comm, MicroBatchMemory memory, const ParallelConfig& parallel)
      : ctx_(ctx),
        t_(t),
        comm_(comm),
        sharding_(comm, t.model, parallel),
        model_(t.model, ctx, true, sharding_.experts()),
        held_(memory == MicroBatchMemory::Hold && t.model.balance_scope == BalanceScope::Step),
        step_(ctx, test::with_eos(step_config(recipe_of(memory)), t.eos), model_, sharding_.mesh(),
              {.pools = &t.pools}) {
    load_golden_weights(ctx, model_.parameters(), t.parameters);
    Arena arena = Arena::measuring(ctx.device);
    (void)model_.reserve(arena, step_.max_tokens());
    arena_ = Arena(ctx.device, arena.peak());
    activations_ = model_.reserve(arena_, step_.max_tokens());
  }

  // `into` is shared by the ranks; rank 0 writes what all of them know.
  void run(Result& into) {
    const Schedule schedule{t_.train.schedule, t_.train.learning_rate, t_.train.warmup_steps,
                            t_.steps,          t_.train.min_lr_ratio,  0};
    for (std::int64_t s = 0; s < t_.steps; ++s) {
      const Share share = share_of(t_, t_.sequences(s), comm_);
      const std::vector<LayerIds> ids = route(s, share, into);
      const StepMetrics m = step_.compute_gradients(s + 1, share.local);
      // The step itself routed the same way: of the micro-batches whose activations are still there.
      const std::size_t last = ids.size() - 1;
      for (std::size_t i = held_ ? 0 : last; i <= last; ++i)
        EXPECT_EQ(layer_ids(t_, step_.activations(i), tokens_of(share, i)), ids[i])
            << "step " << s << ", micro-batch " << i;
      const double lr = schedule.learning_rate(s + 1);
      step_.update(s + 1, lr, m);
      if (comm_.rank() == 0) note(m, lr, into);
    }
  }

  GoldenTensors weights() const { return golden_weights(model_.parameters()); }

 private:
  Recipe recipe_of(MicroBatchMemory memory) const {
    Recipe r;
    r.model = t_.model;
    r.train = t_.train;
    r.train.micro_batch_sequences = share_of(t_, t_.sequences(0), comm_).micro_batch;
    r.train.micro_batch_memory = memory;
    return r;
  }

  std::span<const SequenceInput> micro_batch(const Share& share, std::size_t m) const {
    const std::size_t size = idx(share.micro_batch), begin = std::min(m * size, share.local.size());
    return std::span(share.local).subspan(begin, std::min(size, share.local.size() - begin));
  }
  std::int64_t tokens_of(const Share& share, std::size_t m) const {
    return static_cast<std::int64_t>(micro_batch(share, m).size()) * t_.model.sequence_length;
  }

  // The picks of every micro-batch with the weights as they are now; also to their places in `into`.
  std::vector<LayerIds> route(std::int64_t s, const Share& share, Result& into) {
    std::vector<LayerIds> all;
    const PoolPlan pools{t_.model.pool == PoolMode::Off ? nullptr : &t_.pools, nullptr, s + 1};
    // As many passes as the rank with the most sequences: experts may be on other ranks.
    const std::int64_t most = (t_.micro * t_.rows + comm_.size() - 1) / comm_.size();
    const auto count = idx((most + share.micro_batch - 1) / share.micro_batch);
    for (std::size_t m = 0; m < count; ++m) {
      const MicroBatch batch = make_micro_batch(t_.model, t_.eos, micro_batch(share, m));
      DeviceBatch device_batch(ctx_.device, batch.tokens);
      device_batch.upload(ctx_, batch, draw_pools(t_.model, batch.documents, pools));
      model_.forward(ctx_, activations_, device_batch, nullptr);
      all.push_back(layer_ids(t_, activations_, batch.tokens));
      place(s, micro_batch(share, m), all.back(), into);
    }
    return all;
  }

  void place(std::int64_t s, std::span<const SequenceInput> sequences, const LayerIds& ids, Result& into) const {
    const std::int64_t block = t_.model.sequence_length * t_.model.top_k;  // of one row
    for (std::size_t l = 0; l < ids.size(); ++l)
      for (std::size_t i = 0; i < sequences.size(); ++i) {
        const std::int64_t m = sequences[i].index / t_.rows, row = sequences[i].index % t_.rows;
        const std::int64_t at =
            (((s * t_.micro + m) * t_.model.layers + static_cast<std::int64_t>(l)) * t_.rows + row) * block;
        const auto from = ids[l].begin() + static_cast<std::int64_t>(i) * block;
        std::copy(from, from + block, into.topk_ids.begin() + at);
      }
  }

  void note(const StepMetrics& m, double lr, Result& into) const {
    const auto layers = static_cast<double>(t_.model.layers);
    into.ce.push_back(m.ce);
    into.lm_z.push_back(m.lm_z);
    into.balance_sum.push_back(m.lb * layers / t_.model.balance_weight);
    into.router_z_sum.push_back(m.router_z * layers / t_.model.router_z_weight);
    into.total.push_back(m.loss());
    into.grad_norm.push_back(m.grad_norm);
    into.lr.push_back(lr);
  }

  Context& ctx_;
  const Trajectory& t_;
  Communicator& comm_;
  Sharding sharding_;
  LanguageModel model_;
  bool held_;
  TrainingStep step_;
  Arena arena_{Device{}, 0};
  Activations activations_;
};

Result empty_result(const Trajectory& t) {
  Result r;
  if (t.model.is_moe()) r.topk_ids.assign(t.ids.size() * idx(t.model.layers * t.model.top_k), -1);
  return r;
}

void expect_recorded(GoldenCase& c, const Trajectory& t, const Result& r) {
  if (t.model.is_moe()) {
    c.expect_exact("topk_ids.npy", r.topk_ids);
    c.expect_close("balance_sum.npy", r.balance_sum);
    c.expect_close("router_z_sum.npy", r.router_z_sum);
  }
  c.expect_close("ce.npy", r.ce);
  c.expect_close("lm_z.npy", r.lm_z);
  c.expect_close("total.npy", r.total);
  c.expect_close("grad_norm.npy", r.grad_norm);
  c.expect_close("lr.npy", r.lr);
  c.expect_tensors("final.safetensors", r.weights);
}

void expect_same_bits(const GoldenTensors& a, const GoldenTensors& b) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, tensor] : a) EXPECT_EQ(tensor.values, b.at(name).values) << name;
}

Result run_on(const Trajectory& t, const GoldenMesh& mesh, MicroBatchMemory memory) {
  Result r = empty_result(t);
  std::vector<GoldenTensors> weights(idx(mesh.ranks));
  run_on_mesh(mesh, [&](Context& ctx, Communicator& comm) {
    Rank rank(ctx, t, comm, memory, mesh.parallel());
    rank.run(r);
    weights[idx(comm.rank())] = rank.weights();
  });
  r.weights = union_over_ranks(weights);
  return r;
}

void run_trajectory(GoldenCase& c) {
  const Trajectory t(c);
  for (const GoldenMesh& mesh : golden_meshes(t.model)) {
    const bool divides =
        t.model.balance_scope == BalanceScope::Step ? t.micro * t.rows >= mesh.ranks : t.rows % mesh.ranks == 0;
    if (!divides) continue;
    SCOPED_TRACE(mesh.text());
    const Result held = run_on(t, mesh, MicroBatchMemory::Hold);
    expect_recorded(c, t, held);
    if (mesh.ranks > 1 || t.model.balance_scope != BalanceScope::Step || t.micro == 1) continue;
    SCOPED_TRACE("the forward pass runs twice");
    const Result again = run_on(t, mesh, MicroBatchMemory::Recompute);
    expect_recorded(c, t, again);
    EXPECT_EQ(held.total, again.total);
    EXPECT_EQ(held.grad_norm, again.grad_norm);
    expect_same_bits(held.weights, again.weights);
  }
}

TEST(Golden, Trajectory) { for_each_golden_case(EMOX_SOURCE_DIR, "trajectory", run_trajectory); }

}  // namespace
}  // namespace emox::test
