// Choosing experts, and evaluating with the chosen ones, against float64 loops over the experts' weights, for shapes
// that the recorded case does not have, and on several ranks. The loops get the inputs of a layer from a forward pass.
#include "model/modularity/select_experts.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "launch/run/sharding.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/ops/basic.h"
#include "tests/support/golden_ranks.h"
#include "tests/support/reference.h"
#include "tests/support/support.h"

namespace emox::test {
namespace {

constexpr std::int32_t kEos = 0;
using ref::Vec;
using Kept = std::vector<std::vector<std::int32_t>>;

ModelConfig small_model(std::int64_t experts, std::int64_t shared, std::int64_t top_k) {
  ModelConfig m;
  m.d_model = 16, m.layers = 3, m.heads = 2, m.vocab_size = 40, m.sequence_length = 24, m.expert_ff = 12;
  m.num_experts = experts, m.shared_experts = shared, m.top_k = top_k, m.pool = PoolMode::Off;
  return m;
}

CalibrationText some_text() {
  std::mt19937 gen(5);
  CalibrationText text{.sequences = {}, .eos = kEos};
  for (const std::size_t length : {24, 1, 7, 24, 13}) {
    text.sequences.emplace_back(length);
    for (std::int32_t& id : text.sequences.back()) id = static_cast<std::int32_t>(gen() % 40);
  }
  return text;
}

/// Weights large enough that experts differ; each drawn from its name, wherever it is.
void draw_weights(Context& ctx, LanguageModel& model) {
  for (const NamedParameter& p : model.parameters().named())
    if (p.matrix)
      ops::random_truncated_normal(ctx, model.parameters().weight(p.slot), Philox(3, RngPurpose::Test), p.ordinal, 0,
                                   0.25, 1.0);
    else
      ops::fill(ctx, model.parameters().weight(p.slot), 1.0F);
  if (model.selection_bias().null()) return;
  std::vector<float> bias(idx(model.selection_bias().numel()));
  for (std::size_t i = 0; i < bias.size(); ++i) bias[i] = 0.05F * static_cast<float>(i % 3);
  ops::copy_from_host(ctx, model.selection_bias(), bias.data());
}

/// A model on one rank and its loops.
class Oracle {
 public:
  explicit Oracle(const ModelConfig& config)
      : config_(config), model_(config, ctx_, false), memory_(ctx_, model_, config.sequence_length) {
    draw_weights(ctx_, model_);
    for (const NamedParameter& p : model_.parameters().named())
      weights_[p.name] = ref::doubles(model_.parameters().weight(p.slot));
  }

  struct Layer {
    Vec probability;  ///< [N] mean over tokens, of all routed experts
    Vec easy;         ///< [N]
  };
  /// The loops over all text, the experts of `kept` in use; checks the model's own output of every layer on the way.
  std::vector<Layer> run(const CalibrationText& text, const Kept& kept) {
    model_.keep_experts(ctx_, kept);
    std::vector<Layer> layers(idx(config_.layers), {Vec(idx(config_.num_experts)), Vec(idx(config_.num_experts))});
    double tokens = 0;
    for (const auto& sequence : text.sequences) tokens += static_cast<double>(sequence.size());
    for (const auto& sequence : text.sequences) {
      const std::vector<SequenceInput> inputs{{sequence, {}, 0, 0}};
      const MicroBatch micro = make_micro_batch(config_, kEos, inputs);
      memory_.batch.upload(ctx_, micro);
      model_.forward(ctx_, memory_.activations, memory_.batch, nullptr);
      for (std::int64_t l = 0; l < config_.layers; ++l)
        for (std::int64_t t = 0; t < micro.tokens; ++t) add_token(layers[idx(l)], l, t, tokens, kept[idx(l)]);
    }
    return layers;
  }
  Kept all() const {
    std::vector<std::int32_t> ids(idx(config_.routed_experts()));
    std::iota(ids.begin(), ids.end(), 0);
    return {idx(config_.layers), ids};
  }

 private:
  const Vec& weight(std::int64_t layer, const std::string& name) const {
    return weights_.at(fmt::format("model.layers.{}.mlp.{}.weight", layer, name));
  }
  Vec times(const Vec& w, const Vec& x) const {
    Vec y(w.size() / x.size(), 0.0);
    for (std::size_t i = 0; i < w.size(); ++i) y[i / x.size()] += w[i] * x[i % x.size()];
    return y;
  }
  Vec expert(std::int64_t layer, std::int64_t e, const Vec& x) const {
    const auto part = [&](const char* name) { return fmt::format("experts.{}.{}", e, name); };
    Vec a = times(weight(layer, part("gate_proj")), x);
    const Vec b = times(weight(layer, part("up_proj")), x);
    for (std::size_t i = 0; i < a.size(); ++i) a[i] = a[i] / (1 + std::exp(-a[i])) * b[i];
    return times(weight(layer, part("down_proj")), a);
  }

  void add_token(Layer& into, std::int64_t l, std::int64_t t, double tokens, const std::vector<std::int32_t>& kept) {
    const Activations::Block& block = memory_.activations.blocks[idx(l)];
    const Vec h = ref::doubles(block.normed[t]);
    Vec logits = times(weight(l, "gate"), h);
    logits.resize(idx(config_.routed_experts()));
    const Vec p = ref::softmax(logits, config_.routed_experts());
    for (std::size_t i = 0; i < p.size(); ++i) into.probability[i] += p[i] / tokens;
    // The router that sees the kept experts only.
    Vec seen, wish;
    for (const std::int32_t e : kept) seen.push_back(logits[idx(e)]);
    const Vec q = ref::softmax(seen, static_cast<std::int64_t>(seen.size()));
    for (std::size_t i = 0; i < q.size(); ++i)
      wish.push_back(q[i] +
                     (model_.selection_bias().null() ? 0.0 : ref::doubles(model_.selection_bias()[l])[idx(kept[i])]));
    std::vector<std::size_t> order(q.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return wish[a] > wish[b]; });
    order.resize(std::min(order.size(), idx(config_.routed_top_k())));
    double sum = 1;
    if (config_.normalize_gates) {
      sum = 0;
      for (const std::size_t i : order) sum += q[i];
    }
    Vec y(h.size(), 0.0), sizes(idx(config_.num_experts), 0.0);
    const auto add = [&](std::int64_t e, double gate) {
      const Vec out = expert(l, e, h);
      for (std::size_t i = 0; i < y.size(); ++i) y[i] += gate * out[i];
      sizes[idx(e)] += gate * std::sqrt(ref::dot(out, out));
    };
    for (const std::size_t i : order) add(kept[i], q[i] / sum);
    for (std::int64_t e = config_.routed_experts(); e < config_.num_experts; ++e) add(e, 1.0);
    const Vec after = ref::plus(h, y);
    const double change =
        std::max(0.0, 1.0 - ref::dot(h, after) / std::sqrt(ref::dot(h, h)) / std::sqrt(ref::dot(after, after)));
    for (std::size_t e = 0; e < sizes.size(); ++e) into.easy[e] += sizes[e] * change;
    const TensorView out =
        l + 1 < config_.layers ? memory_.activations.blocks[idx(l + 1)].input : memory_.activations.output;
    const Vec got = ref::doubles(out[t]), want = ref::plus(ref::doubles(block.middle[t]), y);
    for (std::size_t i = 0; i < got.size(); ++i)
      ASSERT_NEAR(got[i], want[i], 2e-5 * std::max(1.0, ref::largest(want))) << "layer " << l << ", token " << t;
  }

  ModelConfig config_;
  Context ctx_;
  LanguageModel model_;
  InferenceMemory memory_;
  std::map<std::string, Vec> weights_;
};

std::vector<std::int32_t> best(const Vec& scores, std::int64_t routed, std::int64_t count) {
  std::vector<std::int32_t> ids(idx(routed));
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](auto a, auto b) { return scores[idx(a)] > scores[idx(b)]; });
  ids.resize(idx(count));
  std::sort(ids.begin(), ids.end());
  return ids;
}

void expect_scores(const std::vector<double>& got, const Vec& want, const std::string& what) {
  for (std::size_t i = 0; i < got.size(); ++i)
    EXPECT_NEAR(got[i], want[i], 1e-5 * ref::largest(want)) << what << ", expert " << i;
}

/// One model and budgets, all methods, on every mesh.
void check_model(const ModelConfig& config, const std::vector<std::int64_t>& keep) {
  const CalibrationText text = some_text();
  Oracle oracle(config);
  const auto full = oracle.run(text, oracle.all());
  Kept greedy = oracle.all();
  std::vector<Vec> greedy_scores;
  for (std::size_t l = 0; l < keep.size(); ++l) {
    greedy_scores.push_back(oracle.run(text, greedy)[l].probability);
    greedy[l] = best(greedy_scores[l], config.routed_experts(), keep[l] - config.shared_experts);
  }
  (void)oracle.run(text, greedy);  // compares the layers of the pruned model
  for (const GoldenMesh& mesh : golden_meshes(config)) {
    SCOPED_TRACE(mesh.text());
    run_on_mesh(mesh, [&](Context& ctx, Communicator& comm) {
      Sharding sharding(comm, config, mesh.parallel());
      LanguageModel model(config, ctx, false, sharding.experts());
      draw_weights(ctx, model);
      InferenceMemory memory(ctx, model, config.sequence_length);
      const auto select = [&](SelectionMethod m) {
        return select_experts(ctx, model, comm, memory, text, {m, keep, 0});
      };
      const ExpertSubset layerwise = select(SelectionMethod::Layerwise), global = select(SelectionMethod::Global),
                         easy = select(SelectionMethod::EasyEp);
      EXPECT_EQ(layerwise.routed, greedy);
      for (std::size_t l = 0; l < keep.size(); ++l) {
        const std::int64_t count = keep[l] - config.shared_experts;
        EXPECT_EQ(global.routed[l], best(full[l].probability, config.routed_experts(), count));
        EXPECT_EQ(easy.routed[l], best(full[l].easy, config.routed_experts(), count));
        expect_scores(layerwise.scores[l], greedy_scores[l], "layerwise");
        expect_scores(global.scores[l], full[l].probability, "global");
        ASSERT_EQ(easy.scores[l].size(), idx(config.num_experts));
        expect_scores(easy.scores[l], full[l].easy, "easy-ep");
        EXPECT_EQ(layerwise.keep(l), keep[l]);
      }
    });
  }
}

TEST(SelectExperts, OneSharedExpert) { check_model(small_model(9, 1, 3), {4, 4, 4}); }
TEST(SelectExperts, FewerKeptThanATokenPicks) { check_model(small_model(9, 1, 5), {3, 3, 3}); }
TEST(SelectExperts, NoSharedExpertAndBudgetsByLayer) { check_model(small_model(8, 0, 2), {1, 8, 3}); }
TEST(SelectExperts, TwoSharedExpertsAndNormalizedGates) {
  ModelConfig m = small_model(10, 2, 4);
  m.normalize_gates = true;
  check_model(m, {5, 5, 5});
}
TEST(SelectExperts, SelectionBias) {
  ModelConfig m = small_model(9, 1, 3);
  m.balance = BalanceMode::Bias;
  check_model(m, {5, 5, 5});
}

TEST(SelectExperts, EqualScoresChooseTheLowerId) {
  const ModelConfig config = small_model(9, 1, 3);
  Context ctx;
  const auto comm = make_self_communicator();
  LanguageModel model(config, ctx, false);  // all weights are zero
  InferenceMemory memory(ctx, model, config.sequence_length);
  const ExpertSubset s =
      select_experts(ctx, model, *comm, memory, some_text(), {SelectionMethod::Global, {4, 4, 4}, 0});
  EXPECT_EQ(s.routed, (Kept(3, {0, 1, 2})));
  EXPECT_EQ(s.provenance.at("smallest_gap"), 0.0);
}

TEST(SelectExperts, RandomIsKeyedBySeedAndLayer) {
  const ModelConfig config = small_model(33, 1, 3);
  Context ctx;
  const auto comm = make_self_communicator();
  LanguageModel model(config, ctx, false);
  InferenceMemory memory(ctx, model, config.sequence_length);
  const auto draw = [&](std::int64_t keep, std::uint64_t seed) {
    return select_experts(ctx, model, *comm, memory, {{}, kEos}, {SelectionMethod::Random, {keep, keep, keep}, seed})
        .routed;
  };
  const Kept a = draw(9, 0);
  EXPECT_EQ(a, draw(9, 0));
  EXPECT_NE(a, draw(9, 1));
  EXPECT_NE(a[0], a[1]);
  for (const auto& layer : a) {
    EXPECT_EQ(layer.size(), 8U);
    EXPECT_TRUE(std::is_sorted(layer.begin(), layer.end()));
    EXPECT_EQ(std::adjacent_find(layer.begin(), layer.end()), layer.end());
  }
}

TEST(SelectExperts, RefusesWhatItCannotDo) {
  const ModelConfig config = small_model(9, 1, 3);
  Context ctx;
  const auto comm = make_self_communicator();
  LanguageModel model(config, ctx, false), trained(config, ctx, true);
  InferenceMemory memory(ctx, model, config.sequence_length);
  const SelectionRequest request{SelectionMethod::Global, {4, 4, 4}, 0};
  EXPECT_THROW((void)select_experts(ctx, model, *comm, memory, {{}, kEos}, request), UsageError);
  EXPECT_THROW((void)select_experts(ctx, model, *comm, memory, {{std::vector<std::int32_t>(25)}, kEos}, request),
               ShapeError);
  EXPECT_THROW(trained.keep_experts(ctx, Kept(3, {0, 1})), ShapeError);
  EXPECT_THROW(model.keep_experts(ctx, Kept(2, {0, 1})), ShapeError);
  EXPECT_THROW(model.keep_experts(ctx, Kept(3, {1, 0})), ShapeError);
  EXPECT_THROW(model.keep_experts(ctx, Kept(3, {0, 8})), ShapeError);
  EXPECT_THROW((void)parse_selection_method("easy_ep", "--method"), UsageError);
  EXPECT_EQ(parse_selection_method("easy-ep", "--method"), SelectionMethod::EasyEp);
}

}  // namespace
}  // namespace emox::test
