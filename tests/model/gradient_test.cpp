// The gradient of the whole objective (cross entropy, LM z, load balance, router z) against finite differences of its
// own forward pass: nothing is forgotten between the layers, and every weight of the losses is the one that is
// reported.
//
// The forward pass is float32, its losses are summed in double: a loss of about 4 is exact to e = 3e-7 or better. A
// five-point difference with step h errs by 1.5 e / h from that and by h^4 f'''''/ 30 from the curve: at most 5e-5 and
// much less for h = 0.01 at weights of size 0.2. Gradients that are looked at are 1e-3 to 1e-1.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>
#include <random>

#include "launch/run/run_start.h"
#include "model/training/training_step.h"
#include "runtime/core/idx.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox {
namespace {

constexpr std::int32_t kEos = 0;
constexpr float kStep = 0.01F;
constexpr double kTolerance = 2e-5, kRelative = 1e-3;

class Objective {
 public:
  explicit Objective(const Recipe& recipe)
      : recipe_(recipe),
        comm_(make_self_communicator()),
        mesh_(*comm_, 1),
        model_(recipe.model, ctx_, true),
        pools_(make_pool_sizes(recipe.model, 4)),
        step_(ctx_, test::with_eos(step_config(recipe), kEos), model_, mesh_,
              {.pools = pools_.get(), .label_count = 2}) {
    model_.initialize(ctx_, 8);
    // Weights of a useful size: experts that disagree, attention that attends, a router that chooses.
    for (const NamedParameter& p : model_.parameters().named())
      if (p.matrix) scale(p, 10.0F);
    std::mt19937 gen(7);
    for (std::int64_t s = 0; s < recipe.train.batch_sequences; ++s) {
      std::vector<std::int32_t> tokens;
      for (std::int64_t i = 0; i < recipe.model.sequence_length; ++i)
        tokens.push_back(gen() % 6 == 0 ? kEos : static_cast<std::int32_t>(gen() % recipe.model.vocab_size));
      tokens_.push_back(tokens);
    }
    for (std::size_t s = 0; s < tokens_.size(); ++s)
      inputs_.push_back({tokens_[s], {}, static_cast<std::int64_t>(s), static_cast<std::int32_t>(s % 2)});
  }

  StepMetrics evaluate() { return step_.compute_gradients(3, inputs_); }
  double loss() { return evaluate().loss(); }
  /// All discrete choices: which experts are in a token's pool, and which of them it picked.
  std::vector<int> choices() const {
    const std::int64_t n = recipe_.model.routed_experts(), k = recipe_.model.routed_top_k();
    std::vector<int> all;
    for (std::int64_t l = 0; recipe_.model.is_moe() && l < recipe_.model.layers; ++l) {
      const auto& route = step_.activations(0).blocks[idx(l)].moe.route;
      const std::size_t from = all.size();
      const std::vector<float> p = test::values_of<float>(route.p);
      for (std::size_t row = 0; row < p.size(); row += idx(recipe_.model.num_experts))
        for (std::int64_t i = 0; i < n; ++i) all.push_back(p[row + idx(i)] > 0 ? 1 : 0);
      const auto ids = test::values_of<std::int32_t>(route.ids);
      for (std::size_t i = 0; i < ids.size(); ++i) all[from + i / k * n + ids[i]] = 2;
    }
    return all;
  }
  const ParameterStore& store() const { return model_.parameters(); }
  float* weight(const NamedParameter& p) const { return store().weight(p.slot).data<float>(); }

  /// d loss / d element, or nothing where a document changes its pool or a token its experts on the way.
  std::optional<double> difference(const NamedParameter& p, std::int64_t element) {
    float* w = weight(p) + element;
    const float middle = *w;
    const auto want = choices();
    std::optional<double> result = 0.0;
    for (const auto& [steps, factor] : {std::pair{1, 8.0}, {-1, -8.0}, {2, -1.0}, {-2, 1.0}}) {
      *w = middle + static_cast<float>(steps) * kStep;
      const double f = loss();
      if (choices() != want) result.reset();
      if (result) *result += factor * f / (12 * double{kStep});
    }
    *w = middle;
    return result;
  }

 private:
  void scale(const NamedParameter& p, float factor) {
    for (std::int64_t i = 0; i < p.slot.shape.numel(); ++i) weight(p)[i] *= factor;
  }
  Context ctx_;
  Recipe recipe_;
  std::unique_ptr<Communicator> comm_;
  ProcessMesh mesh_;
  LanguageModel model_;
  std::unique_ptr<PoolSizes> pools_;
  TrainingStep step_;
  std::vector<std::vector<std::int32_t>> tokens_;
  std::vector<SequenceInput> inputs_;
};

Recipe small_recipe() {
  Recipe r;
  r.model.d_model = 16, r.model.layers = 2, r.model.heads = 2, r.model.vocab_size = 23, r.model.sequence_length = 12;
  r.model.num_experts = 6, r.model.top_k = 3, r.model.shared_experts = 1, r.model.expert_ff = 12, r.model.dense_ff = 24;
  r.model.pool = PoolMode::Uniform, r.model.pool_min = 2, r.model.pool_max = 5;
  r.model.balance_weight = 1.0, r.model.router_z_weight = 0.3;
  r.train.lm_z_weight = 0.02;
  r.train.batch_sequences = 3, r.train.micro_batch_sequences = 3;
  return r;
}

// Of every tensor the element with the largest gradient and two others.
void check_gradients(const Recipe& recipe) {
  Objective objective(recipe);
  const StepMetrics m = objective.evaluate();
  if (recipe.model.is_moe()) {
    EXPECT_GT(m.lb, 0.5);
    EXPECT_GT(m.router_z, 0.05);
  }
  EXPECT_GT(m.lm_z, 0.05);
  std::vector<std::vector<float>> gradients;
  for (const NamedParameter& p : objective.store().named())
    gradients.push_back(test::values_of<float>(objective.store().grad(p.slot)));
  std::mt19937 gen(3);
  int checked = 0, skipped = 0;
  double worst = 0;
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    const NamedParameter& p = objective.store().named()[i];
    const std::vector<float>& g = gradients[i];
    const auto largest =
        std::max_element(g.begin(), g.end(), [](float a, float b) { return std::abs(a) < std::abs(b); });
    for (const std::size_t element : {idx(largest - g.begin()), gen() % g.size(), gen() % g.size()}) {
      const auto want = objective.difference(p, static_cast<std::int64_t>(element));
      skipped += want ? 0 : 1;
      if (!want) continue;
      ++checked;
      EXPECT_NEAR(g[element], *want, kTolerance + kRelative * std::abs(*want)) << p.name << " element " << element;
      worst = std::max(worst, std::abs(g[element] - *want) / (kTolerance + kRelative * std::abs(*want)));
    }
  }
  std::printf("  %d elements, %d skipped (choices change), worst at %.2f of the tolerance\n", checked, skipped, worst);
  EXPECT_GT(checked, 40);
  EXPECT_LT(skipped, checked / 2);
}

TEST(WholeModelGradient, Emo) { check_gradients(small_recipe()); }

TEST(WholeModelGradient, HalfOfTheTokensFree) {
  Recipe r = small_recipe();
  r.model.pool_free_tokens = 0.5, r.model.pool_free_share = 0.2, r.model.pool_max = 3;
  check_gradients(r);
}

TEST(WholeModelGradient, NormalisedGatesAndFixedPoolsByTheReferencesEosRule) {
  Recipe r = small_recipe();
  r.model.normalize_gates = true, r.model.pool = PoolMode::Fixed, r.model.pool_size = 3,
  r.model.eos = EosRule::Reference;
  check_gradients(r);
}

TEST(WholeModelGradient, StandardWithoutSharedExperts) {
  Recipe r = small_recipe();
  r.model.pool = PoolMode::Off, r.model.shared_experts = 0, r.model.intra_document_attention = false;
  check_gradients(r);
}

TEST(WholeModelGradient, Dense) {
  Recipe r = small_recipe();
  r.model.num_experts = 0, r.model.layers = 4;
  check_gradients(r);
}

}  // namespace
}  // namespace emox
