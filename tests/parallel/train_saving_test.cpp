// train() that saves: in the background as at once, with failures on the way, and over a chain of meshes.
#include <gtest/gtest.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>

#include "launch/plan/memory.h"
#include "launch/run/session.h"
#include "launch/run/trainer.h"
#include "parallel/checkpoint/checkpoint.h"
#include "parallel/checkpoint/layout.h"
#include "runtime/core/error.h"
#include "runtime/files/files.h"
#include "tests/support/agreement.h"
#include "tests/support/checkpoints.h"
#include "tests/support/interrupted.h"
#include "tests/support/ranks.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

struct Mesh {
  int expert_parallel, data_parallel;
  PlacementKind placement = PlacementKind::Block;
  DispatchKind dispatch = DispatchKind::Flat;
  int ranks() const { return expert_parallel * data_parallel; }
};

class TrainSaving : public testing::Test {
 protected:
  TrainSaving() : recipe_(test::tiny_recipe(test::make_text_sources(directory_.path()))) {
    recipe_.eval.final = false;
    recipe_.train.steps = 20;
    recipe_.checkpoint.every_steps = 5;
    recipe_.checkpoint.keep_last = 100;
    recipe_.checkpoint.async = true;
  }

  fs::path run(const std::string& name) const { return directory_.path() / name; }
  fs::path checkpoint(const std::string& name, int step) const {
    return run(name) / "checkpoints" / step_directory_name(step);
  }
  /// Until `stop` (0: to the end).
  fs::path train_on(const std::string& name, const Mesh& mesh, std::int64_t stop = 0) const {
    Recipe r = recipe_;
    r.run.dir = run(name).string();
    r.run.stop_after_step = stop;
    r.parallel.expert_parallel = mesh.expert_parallel;
    r.parallel.placement = mesh.placement;
    r.parallel.placement_seed = 3;
    r.parallel.dispatch = mesh.dispatch;
    test::run_ranks(mesh.ranks(), [&](Communicator& comm) {
      Session session(comm.split(0, comm.rank()), 1);
      train(session, r, {"test"});
    });
    return r.run.dir;
  }
  std::set<std::int64_t> saved_steps(const std::string& name) const {
    std::set<std::int64_t> steps;
    for (const fs::path& path : list_checkpoints(run(name) / "checkpoints"))
      steps.insert(*step_of_directory(path.filename().string()));
    return steps;
  }
  std::string log_of(const std::string& name) const { return try_read_text(run(name) / "log" / "rank-00000.txt").text; }

  test::TemporaryDirectory directory_;
  Recipe recipe_;
};

TEST_F(TrainSaving, InTheBackgroundIsTheSameAsAtOnce) {
  for (const Mesh& mesh : {Mesh{1, 1}, Mesh{2, 1}, Mesh{2, 2}}) {
    SCOPED_TRACE(testing::Message() << mesh.expert_parallel << "x" << mesh.data_parallel);
    const std::string tag = fmt::format("{}x{}", mesh.expert_parallel, mesh.data_parallel);
    recipe_.checkpoint.async = true;
    train_on("background" + tag, mesh);
    recipe_.checkpoint.async = false;
    train_on("at-once" + tag, mesh);
    EXPECT_EQ(saved_steps("background" + tag), (std::set<std::int64_t>{5, 10, 15, 20}));
    for (const int step : {5, 10, 15, 20})
      EXPECT_TRUE(test::same_arrays(checkpoint("background" + tag, step), checkpoint("at-once" + tag, step))) << step;
    EXPECT_EQ(test::read_metrics(run("background" + tag)), test::read_metrics(run("at-once" + tag)));
  }
}

// A save is committed when all ranks have written; one rank's wish to stop, or to save, is all ranks'.
TEST_F(TrainSaving, RanksVote) {
  const Recipe r = test::step_recipe(3, DispatchKind::Flat);
  test::run_ranks(3, [&](Communicator& comm) {
    test::StepRank rank(comm, r);
    std::int64_t step = 0;
    const auto vote = [&](int finished, int stop, int save) {  // bits: the ranks that say so
      const auto says = [&](int ranks) { return (ranks >> comm.rank()) % 2 == 1; };
      return rank.step(++step, {says(finished), [&, stop, save] { return LateVotes{says(stop), says(save)}; }});
    };
    EXPECT_FALSE(rank.step(++step).stop);
    for (int ranks = 0; ranks < 8; ++ranks) {
      const StepMetrics m = vote(ranks, 7 - ranks, ranks / 2);
      EXPECT_EQ(m.save_finished, ranks == 7) << ranks;
      EXPECT_EQ(m.stop, ranks != 7) << ranks;
      EXPECT_EQ(m.save, ranks / 2 != 0) << ranks;
    }
  });
}

TEST_F(TrainSaving, ABusyWriterIsWaitedFor) {
  recipe_.checkpoint.every_steps = 1;
  train_on("run", {2, 1});
  EXPECT_EQ(saved_steps("run").size(), 20U);
  EXPECT_EQ(log_of("run").find("is not saved"), std::string::npos);
}

TEST_F(TrainSaving, OrAStepIsLeftOutByChoice) {
  recipe_.checkpoint.every_steps = 1;
  recipe_.checkpoint.when_busy = WhenBusy::Skip;
  train_on("run", {2, 1});
  const std::set<std::int64_t> saved = saved_steps("run");
  EXPECT_TRUE(saved.contains(1));   // nothing is running then
  EXPECT_TRUE(saved.contains(20));  // the last one is always saved
  const std::string log = log_of("run");
  for (std::int64_t step = 1; step <= 20; ++step) {
    const bool skipped = log.find(fmt::format("step {} is not saved: step", step)) != std::string::npos;
    EXPECT_NE(saved.contains(step), skipped) << step;
  }
}

// Two directories stand where the link to the latest checkpoint belongs.
TEST_F(TrainSaving, FailuresInTheBackgroundAreSaidAndEndTheRunWithAnError) {
  const fs::path checkpoints = run("run") / "checkpoints";
  for (const char* name : {"latest", "latest.replaced"}) fs::create_directories(checkpoints / name / "in the way");
  try {
    train_on("run", {2, 1});
    FAIL() << "no error at the end";
  } catch (const Error& e) {
    for (const char* part : {"4 save(s) in the background failed", "step 20", "cannot rename", "latest.replaced"})
      EXPECT_NE(e.message().find(part), std::string::npos) << part << " not in " << e.message();
  }
  for (const int step : {5, 10, 15})
    EXPECT_NE(log_of("run").find(fmt::format("the save of step {} failed, training goes on", step)), std::string::npos);
  EXPECT_EQ(saved_steps("run"), std::set<std::int64_t>{});
  train_on("whole", {2, 1});
  EXPECT_EQ(test::read_metrics(run("run")), test::read_metrics(run("whole")));
}

TEST_F(TrainSaving, OldCheckpointsGoOnlyWhenANewOneIsInPlace) {
  recipe_.checkpoint.keep_last = 2;
  recipe_.checkpoint.keep_every_steps = 10;
  train_on("run", {1, 2});
  EXPECT_EQ(saved_steps("run"), (std::set<std::int64_t>{10, 15, 20}));
  EXPECT_EQ(fs::read_symlink(run("run") / "checkpoints" / "latest"), "step-00000020");
}

// Every mesh saves for the next one; two of them go on twice on the same ranks.
TEST_F(TrainSaving, AChainOfMeshesEndsWhereAnUninterruptedRunDoes) {
  recipe_.train.steps = 48;
  recipe_.checkpoint.every_steps = 100;
  const auto whole = test::read_metrics(train_on("whole", {1, 1}));
  const std::vector<Mesh> chain = {
      {2, 1}, {2, 2, PlacementKind::Random}, {3, 1}, {1, 3}, {4, 1, PlacementKind::Random, DispatchKind::TwoLevel},
      {1, 2}, {2, 3, PlacementKind::Random}, {1, 1}};
  for (std::size_t i = 0; i < chain.size(); ++i) {
    train_on("chain", chain[i], 6 * static_cast<std::int64_t>(i + 1));
    if (i == 0) continue;
    const std::string expected = fmt::format("resharded: saved by {} rank(s)", chain[i - 1].ranks());
    EXPECT_NE(log_of("chain").find(expected), std::string::npos) << expected;
  }
  const auto resumed = test::read_metrics(run("chain"));
  ASSERT_EQ(resumed.size(), 48U);
  std::printf("  %zu meshes: losses within %.1e of the uninterrupted run's\n", chain.size(),
              test::loss_deviation(resumed, whole));
  // Design 4.6: within 1e-5 without a near tie in the routing, never beyond 1e-4. TrainMesh sees the routing of this
  // recipe's steps; here none is beyond the stricter bound.
  EXPECT_LE(test::loss_deviation(resumed, whole), 1e-5);
  EXPECT_EQ(resumed.back().at("pool_mean"), whole.back().at("pool_mean"));
  EXPECT_EQ(resumed.back().at("tokens"), whole.back().at("tokens"));
}

TEST_F(TrainSaving, TheSameMeshGoesOnBitForBitFromABackgroundSave) {
  for (const Mesh& mesh : {Mesh{2, 1}, Mesh{1, 3}, Mesh{2, 2, PlacementKind::Random}}) {
    const std::string tag = fmt::format("{}x{}", mesh.expert_parallel, mesh.data_parallel);
    SCOPED_TRACE(tag);
    train_on("whole" + tag, mesh);
    train_on("parts" + tag, mesh, 10);
    train_on("parts" + tag, mesh, 13);
    train_on("parts" + tag, mesh);
    EXPECT_NE(log_of("parts" + tag).find("same ranks and placement"), std::string::npos);
    test::expect_same_history(run("parts" + tag), run("whole" + tag), 20);
  }
}

TEST_F(TrainSaving, ThePlanKnowsTheCopy) {
  const auto copy_of = [&](int ep, int dp) {
    Recipe r = recipe_;
    r.parallel.expert_parallel = ep;
    std::int64_t bytes = 0;
    for (int rank = 0; rank < ep * dp; ++rank) bytes += plan_rank_memory(r, ep * dp, 8, rank, 1).checkpoint;
    return bytes;
  };
  const auto comm = make_self_communicator();
  // Weight and two moments of every element, once over all ranks.
  Context ctx;
  const LanguageModel model(recipe_.model, ctx, true);
  const std::int64_t all = 3 * 4 * model.parameters().element_count();
  for (const auto& [ep, dp] : {std::pair{1, 1}, std::pair{2, 1}, std::pair{1, 3}, std::pair{2, 2}})
    EXPECT_EQ(copy_of(ep, dp), all) << ep << "x" << dp;
  recipe_.checkpoint.async = false;
  EXPECT_EQ(copy_of(2, 1), 0);
}

}  // namespace
}  // namespace emox
