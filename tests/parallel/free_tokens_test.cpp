// Tokens that are free of their document's pool (moe.pool_free_tokens): the same training on every mesh and cut, the
// plain EMO with none of them free, the standard model with all.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "launch/run/session.h"
#include "launch/run/trainer.h"
#include "parallel/expert/expert_parallel.h"
#include "parallel/expert/planned_exchange.h"
#include "parallel/expert/pool_trace.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "tests/support/agreement.h"
#include "tests/support/ranks.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

using test::RunOptions;
using test::TrainingRun;

class FreeTokensTraining : public testing::Test {
 protected:
  FreeTokensTraining() : recipe_(test::tiny_recipe(test::make_text_sources(directory_.path()))) {
    recipe_.model.pool_max = 5;  // of 8: pools that bind
    recipe_.model.pool_free_tokens = 0.4;
    recipe_.model.pool_free_share = 0.2;
  }

  struct Mesh {
    int expert_parallel = 1, data_parallel = 1;
    DispatchKind dispatch = DispatchKind::Flat;
    PlacementKind placement = PlacementKind::Block;
  };
  TrainingRun run(const Mesh& m, RunOptions options) const {
    Recipe r = recipe_;
    r.parallel.expert_parallel = m.expert_parallel;
    r.parallel.dispatch = m.dispatch;
    r.parallel.placement = m.placement;
    options.ranks = m.expert_parallel * m.data_parallel;
    options.ranks_per_node = 2;
    r.validate(options.ranks);
    return test::train_on_threads(r, options);
  }

  test::TemporaryDirectory directory_;
  Recipe recipe_;
};

// Two documents, of 3 and 4 tokens: the pool of the first is on rank 0, that of the second on ranks 1 and 2. Two tokens
// of the first and one of the second are free.
TEST(FreeTokensReach, AFreeTokenMayGoEverywhereTheOthersStay) {
  const std::vector<std::uint8_t> pool{1, 1, 0, 0, 0, 0, 1, 1}, free{1, 0, 1, 0, 0, 0, 1}, all(7, 1);
  const std::vector<std::int32_t> segments{0, 3, 7}, destination{0, 0, 1, 2};
  const std::vector<std::int32_t> node{0, 0, 0, 1};  // of each expert: ranks 0 and 1 share one
  const auto limits = [&](std::span<const std::uint8_t> free_tokens) {
    PoolReach reach;
    pool_reach(reach, pool, segments, node, 2, free_tokens);
    EXPECT_EQ(reach.reached, 3);  // nodes of the pools, whoever is free
    pool_reach(reach, pool, segments, destination, 3, free_tokens);
    EXPECT_EQ(reach.reached, 3);  // ranks
    return reach.limit;
  };
  EXPECT_EQ(limits({}), (std::vector<std::int64_t>{3, 4, 4}));
  EXPECT_EQ(limits(free), (std::vector<std::int64_t>{3 + 1, 4 + 2, 4 + 2}));
  EXPECT_EQ(limits(all), (std::vector<std::int64_t>{7, 7, 7}));
}

// Experts 0 and 1 are on rank 0, 2 and 3 on rank 1; the pool of the only document is 0 and 1, and its second token
// picks expert 2. That is a contradiction unless the token is free.
TEST(FreeTokensReach, OnlyAFreeTokenMayLeaveThePool) {
  const auto rows_of_rank_one = [](const std::vector<std::uint8_t>& flags) {
    std::int64_t rows = 0;
    test::run_ranks(2, [&](Communicator& comm) {
      Context ctx;
      ExpertParallel experts(comm, ExpertPlacement::block(1, 4, 2), DispatchKind::Flat);
      const auto dispatcher = experts.make_dispatcher(0, 1);
      Arena arena = Arena::measuring();
      (void)dispatcher->reserve(arena, 2);
      Arena memory({}, arena.peak());
      const auto handle = dispatcher->reserve(memory, 2);
      experts.reserve(memory, 2, 1, 4);
      const Tensor ids = test::tensor_of(std::vector<std::int32_t>{1, 2}, {2, 1}),
                   pool = test::tensor_of(std::vector<std::uint8_t>{1, 1, 0, 0}, {1, 4}),
                   segments = test::tensor_of(std::vector<std::int32_t>{0, 2}, {2}),
                   gates = test::tensor_of(std::vector<float>{0.5F, 0.25F}, {2, 1}),
                   free = test::tensor_of(flags, {static_cast<std::int64_t>(flags.size())});
      dispatcher->plan(ctx, *handle, ids, gates, {pool, segments, flags.empty() ? TensorView{} : free.view()});
      if (comm.rank() == 1) rows = handle->rows;
    });
    return rows;
  };
  EXPECT_EQ(rows_of_rank_one({0, 1}), 2);  // one of each rank
  for (const std::vector<std::uint8_t>& flags : {std::vector<std::uint8_t>{}, {0, 0}}) {
    try {
      rows_of_rank_one(flags);
      ADD_FAILURE() << "a token left its pool";
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("picks and pools contradict"), std::string::npos) << e.what();
    }
  }
}

// Free draws are part of `draws`. Every plan checks that picks stay inside what pools and free tokens can reach.
TEST_F(FreeTokensTraining, EveryMeshAgrees) {
  const RunOptions options{.steps = 8, .record_routing = true};
  const TrainingRun one = run({}, options);
  const auto flags = [](const test::Draws& draws) {
    return std::count_if(draws.begin(), draws.end(), [](const auto& d) { return std::get<3>(d.first) < 0; });
  };
  ASSERT_EQ(flags(one.draws), 8 * recipe_.model.layers * recipe_.tokens_per_step());
  for (const Mesh& m : {Mesh{2, 1}, Mesh{1, 3}, Mesh{2, 2, DispatchKind::Flat, PlacementKind::Random},
                        Mesh{4, 1, DispatchKind::TwoLevel, PlacementKind::Random}}) {
    SCOPED_TRACE(testing::Message() << m.expert_parallel << "x" << m.data_parallel);
    const TrainingRun many = run(m, options);
    const test::SeriesAgreement agreement = test::series_agreement(many, one);
    EXPECT_TRUE(agreement.ok) << agreement.text;
    EXPECT_EQ(many.draws, one.draws);
    if (m.expert_parallel > 1) {
      EXPECT_GT(many.steps[0].dispatch.rows_sent_per_token, 0);
    }
  }
}

TEST_F(FreeTokensTraining, TheCutIntoMicroBatchesAndRecomputingChangeNothing) {
  const TrainingRun whole = run({}, {.first_step = 3});
  for (const std::int64_t micro : {1, 5}) {
    recipe_.train.micro_batch_sequences = micro;
    recipe_.train.micro_batch_memory = MicroBatchMemory::Hold;
    const TrainingRun hold = run({2, 1}, {.first_step = 3});
    recipe_.train.micro_batch_memory = MicroBatchMemory::Recompute;
    const TrainingRun again = run({2, 1}, {.first_step = 3});
    EXPECT_LE(test::relative(hold.steps[0].loss(), whole.steps[0].loss()), 1e-6);
    EXPECT_LE(test::tensor_deviation(hold.gradients, whole.gradients).largest, 1e-5);
    EXPECT_EQ(hold.draws, whole.draws);
    EXPECT_EQ(again.steps[0].loss(), hold.steps[0].loss());
    EXPECT_EQ(again.gradients, hold.gradients);
  }
}

// Share 1 is the standard model and a share that no draw falls below is the plain EMO, bit for bit; a share between is
// neither.
TEST_F(FreeTokensTraining, NoneAndAllAreTheTwoModels) {
  const RunOptions options{.steps = 4, .record_routing = true};
  recipe_.model.pool_free_share = 0;
  const TrainingRun some = run({2, 1}, options);
  recipe_.model.pool_free_tokens = 1;
  const TrainingRun all = run({2, 1}, options);
  recipe_.model.pool_free_tokens = 1e-12;
  const TrainingRun hardly = run({2, 1}, options);
  recipe_.model.pool_free_tokens = 0;
  const TrainingRun pools = run({2, 1}, options);
  recipe_.model.pool = PoolMode::Off;
  const TrainingRun standard = run({2, 1}, options);
  EXPECT_EQ(all.weights, standard.weights);
  EXPECT_EQ(hardly.weights, pools.weights);
  for (std::size_t s = 0; s < standard.steps.size(); ++s) {
    EXPECT_EQ(all.steps[s].loss(), standard.steps[s].loss()) << "step " << s + 1;
    EXPECT_EQ(hardly.steps[s].loss(), pools.steps[s].loss()) << "step " << s + 1;
    EXPECT_EQ(all.routing[s].ids, standard.routing[s].ids) << "step " << s + 1;
    EXPECT_NE(some.routing[s].ids, standard.routing[s].ids) << "step " << s + 1;
    EXPECT_NE(some.routing[s].ids, pools.routing[s].ids) << "step " << s + 1;
  }
}

// A run that is stopped and resumed goes on with the draws of the whole run; its recording says who was free, and that
// nobody else left the pool.
TEST_F(FreeTokensTraining, ResumeAndRecording) {
  recipe_.eval.final = false;
  recipe_.train.steps = 6;
  const fs::path recording = directory_.path() / "pools";
  const auto train_until = [&](const std::string& name, std::int64_t stop, const fs::path& record) {
    Recipe r = recipe_;
    r.run.dir = (directory_.path() / name).string();
    r.run.stop_after_step = stop;
    test::run_ranks(1, [&](Communicator& comm) {
      Session session(comm.split(0, comm.rank()), 1);
      TrainOptions options;
      options.record_pools = record.string();
      train(session, r, {"test"}, options);
    });
    return fs::path(r.run.dir);
  };
  const fs::path whole = train_until("whole", 0, recording);
  train_until("parts", 3, {});
  test::expect_same_history(train_until("parts", 0, {}), whole, 6);

  PoolTraceReader reader(recording);
  ASSERT_TRUE(reader.header().free_tokens);
  std::int64_t tokens = 0, free = 0, outside = 0, records = 0;
  for (; auto r = reader.next(); ++records)
    for (std::size_t doc = 0; doc + 1 < r->segments.size(); ++doc)
      for (std::int32_t t = r->segments[doc]; t < r->segments[doc + 1]; ++t) {
        const bool is_free = r->free_tokens[idx(t)] != 0;
        ++tokens, free += is_free;
        for (std::uint32_t k = 0; k < reader.header().top_k; ++k) {
          const auto e = r->ids[idx(t) * reader.header().top_k + k];
          const bool inside = r->pools[doc * reader.header().experts + idx(e)] != 0;
          ASSERT_TRUE(inside || is_free) << "token " << t << " of step " << r->step;
          outside += !inside;
        }
      }
  EXPECT_EQ(records, 6 * recipe_.model.layers);
  EXPECT_NEAR(static_cast<double>(free), 0.4 * static_cast<double>(tokens),
              4 * std::sqrt(0.4 * 0.6 * static_cast<double>(tokens)));
  EXPECT_GT(outside, free / 4);
}

}  // namespace
}  // namespace emox
