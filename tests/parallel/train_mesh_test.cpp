// Experts sharded over ranks: the same training as on one rank, on every mesh, with every placement and dispatch.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <functional>

#include "tests/support/agreement.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox {
namespace {

using test::NamedValues;
using test::RunOptions;
using test::train_on_threads;
using test::TrainingRun;

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr std::int64_t kSeries = 6;
#else
constexpr std::int64_t kSeries = 50;
#endif

struct Mesh {
  int expert_parallel, data_parallel;
  DispatchKind dispatch = DispatchKind::Flat;
  PlacementKind placement = PlacementKind::Block;
  int ranks() const { return expert_parallel * data_parallel; }
};

const Mesh kMeshes[] = {{2, 1},
                        {1, 2},
                        {4, 1},
                        {2, 2},
                        {1, 4},
                        {8, 1},
                        {3, 1},
                        {3, 2},
                        {4, 1, DispatchKind::Flat, PlacementKind::Random},
                        {4, 1, DispatchKind::TwoLevel},
                        {4, 2, DispatchKind::TwoLevel, PlacementKind::Random},
                        {6, 1, DispatchKind::TwoLevel, PlacementKind::Random}};

std::string text_of(const Mesh& m) {
  return std::to_string(m.expert_parallel) + "x" + std::to_string(m.data_parallel) +
         (m.dispatch == DispatchKind::TwoLevel ? ", two-level" : "") +
         (m.placement == PlacementKind::Random ? ", random placement" : "");
}

struct Model {
  const char* name;
  std::function<void(Recipe&)> change;
};

void PrintTo(const Model& m, std::ostream* out) { *out << m.name; }

const Model kModels[] = {
    {"emo", [](Recipe&) {}},
    {"standard", [](Recipe& r) { r.model.pool = PoolMode::Off; }},
    {"micro_batches",
     [](Recipe& r) {
       // Ranks with unequal numbers of sequences, so that some run micro-batches without tokens.
       r.train.batch_sequences = 10;
       r.train.micro_batch_sequences = 2;
     }},
    {"two_shared",
     [](Recipe& r) {
       r.model.num_experts = 12, r.model.top_k = 5, r.model.shared_experts = 2;  // 10 on 3, 4 and 8 ranks
       r.model.pool_min = 3;
     }},
    {"no_shared", [](Recipe& r) { r.model.num_experts = 8, r.model.top_k = 2, r.model.shared_experts = 0; }},
};

class TrainMesh : public testing::TestWithParam<Model> {
 protected:
  Recipe recipe() const {
    Recipe r = test::tiny_recipe(test::make_text_sources(directory_.path()));
    GetParam().change(r);
    r.validate(1);
    return r;
  }
  static TrainingRun run(Recipe r, const Mesh& m, RunOptions options) {
    r.parallel.expert_parallel = m.expert_parallel;
    r.parallel.dispatch = m.dispatch;
    r.parallel.placement = m.placement;
    r.validate(m.ranks());
    options.ranks = m.ranks();
    options.ranks_per_node = 2;
    return train_on_threads(r, options);
  }
  test::TemporaryDirectory directory_;
};

TEST_P(TrainMesh, OneStepIsTheSame) {
  const Recipe r = recipe();
  const NamedValues trained = train_on_threads(r, {.ranks = 1, .steps = 20}).weights;
  const bool whole = r.train.micro_batch_sequences >= r.train.batch_sequences;  // a share is one micro-batch
  for (const NamedValues* start : {static_cast<const NamedValues*>(nullptr), &trained}) {
    const RunOptions options{.first_step = 21, .record_routing = whole, .start = start};
    const TrainingRun one = run(r, {1, 1}, options);
    ASSERT_GT(one.steps[0].grad_norm, 1e-3);
    for (const Mesh& m : kMeshes) {
      SCOPED_TRACE(text_of(m) + (start == nullptr ? ", first weights" : ", trained weights"));
      const TrainingRun many = run(r, m, options);
      test::expect_same_step(many, one, whole);
      const DispatchMetrics& d = many.steps[0].dispatch;
      if (m.expert_parallel == 1) {
        EXPECT_EQ(d.bytes_intra_node + d.bytes_inter_node, 0);
        EXPECT_EQ(d.ranks_per_token, 1);
      } else {
        EXPECT_GT(d.ranks_per_token, 1);
        EXPECT_GT(d.rows_sent_per_token, 0);
        EXPECT_GE(d.ranks_per_document, d.ranks_per_token);
      }
    }
  }
}

TEST_P(TrainMesh, ManyStepsAgree) {
  const Recipe r = recipe();
  const bool whole = r.train.micro_batch_sequences >= r.train.batch_sequences;
  const RunOptions options{.steps = kSeries, .record_routing = whole};
  const TrainingRun one = run(r, {1, 1}, options);
  EXPECT_LT(one.steps.back().ce, one.steps.front().ce - 0.02 * static_cast<double>(kSeries));
  for (const Mesh& m : kMeshes) {
    const TrainingRun many = run(r, m, options);
    const test::SeriesAgreement agreement = test::series_agreement(many, one);
    EXPECT_TRUE(agreement.ok) << text_of(m) << ":\n" << agreement.text;
    std::printf("  %s: %s\n", text_of(m).c_str(), agreement.text.c_str());
    EXPECT_EQ(many.draws, one.draws);
  }
}

TEST_P(TrainMesh, TheSameMeshGivesTheSameBits) {
  const Recipe r = recipe();
  for (const Mesh& m : {Mesh{2, 1}, Mesh{2, 2}, Mesh{4, 1, DispatchKind::TwoLevel, PlacementKind::Random}}) {
    const RunOptions options{.steps = std::min<std::int64_t>(kSeries, 10)};
    const TrainingRun a = run(r, m, options), b = run(r, m, options);
    for (std::size_t s = 0; s < a.steps.size(); ++s) {
      EXPECT_EQ(a.steps[s].loss(), b.steps[s].loss()) << text_of(m) << ", step " << s + 1;
      EXPECT_EQ(a.steps[s].grad_norm, b.steps[s].grad_norm) << text_of(m) << ", step " << s + 1;
      EXPECT_EQ(a.steps[s].dispatch.bytes_inter_node, b.steps[s].dispatch.bytes_inter_node);
    }
    EXPECT_EQ(a.weights, b.weights) << text_of(m);
  }
}

// parallel.expert_parallel = auto is the number that it stands for: two ranks of a node.
TEST(TrainMeshAuto, IsTheMeshThatItStandsFor) {
  const test::TemporaryDirectory directory;
  Recipe r = test::tiny_recipe(test::make_text_sources(directory.path()));
  const auto one_step = [&](std::int64_t expert_parallel) {
    r.parallel.expert_parallel = expert_parallel;
    r.validate(4);
    return train_on_threads(r, {.ranks = 4, .ranks_per_node = 2, .steps = 2});
  };
  const TrainingRun automatic = one_step(0), two = one_step(2);
  EXPECT_EQ(automatic.weights, two.weights);
  EXPECT_EQ(automatic.steps[1].dispatch.bytes_intra_node, two.steps[1].dispatch.bytes_intra_node);
  EXPECT_GT(two.steps[1].dispatch.bytes_intra_node, 0);
  EXPECT_EQ(two.steps[1].dispatch.bytes_inter_node, 0);
  EXPECT_NE(one_step(4).steps[1].dispatch.bytes_inter_node, 0);
}

// Two-level sends less between nodes than flat, which sends less than a copy for every pick.
TEST_P(TrainMesh, TwoLevelSendsLessBetweenNodes) {
  const Recipe r = recipe();
  const auto flat = run(r, {4, 1}, {}).steps[0].dispatch,
             two = run(r, {4, 1, DispatchKind::TwoLevel}, {}).steps[0].dispatch;
  EXPECT_LT(two.bytes_inter_node, flat.bytes_inter_node);
  EXPECT_GT(flat.bytes_saved, 0);
  EXPECT_EQ(flat.ranks_per_token, two.ranks_per_token);
  EXPECT_EQ(flat.nodes_per_token, two.nodes_per_token);
}

// A token with one routed expert is one row whether or not copies are avoided; so is each pass that is repeated.
TEST(TrainMeshCounters, OnePickATokenSavesNothing) {
  test::TemporaryDirectory directory;
  for (const MicroBatchMemory memory : {MicroBatchMemory::Hold, MicroBatchMemory::Recompute}) {
    Recipe r = test::tiny_recipe(test::make_text_sources(directory.path()));
    r.model.top_k = r.model.shared_experts + 1;
    r.model.pool_min = 1;
    r.train.micro_batch_sequences = 1;
    r.train.micro_batch_memory = memory;
    r.parallel.expert_parallel = 4;
    r.parallel.dispatch = DispatchKind::Flat;
    r.validate(4);
    const DispatchMetrics d = train_on_threads(r, {.ranks = 4, .ranks_per_node = 2}).steps[0].dispatch;
    EXPECT_GT(d.bytes_intra_node + d.bytes_inter_node, 0);
    EXPECT_EQ(d.bytes_saved, 0);
  }
}

std::string name_of(const testing::TestParamInfo<Model>& model) { return model.param.name; }
INSTANTIATE_TEST_SUITE_P(All, TrainMesh, testing::ValuesIn(kModels), name_of);

}  // namespace
}  // namespace emox
