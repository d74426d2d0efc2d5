// What a run takes from a checkpoint, when the first one that was tried turned out to be damaged.
#include "launch/run/model_pieces.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "launch/run/find_checkpoint.h"
#include "launch/run/sharding.h"
#include "tests/parallel/checkpoint_model.h"
#include "tests/support/checkpoints.h"
#include "tests/support/ranks.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

Recipe recipe_with_bias() {
  Recipe r = test::tiny_recipe({"made-up:1:nowhere"});
  r.model.balance = BalanceMode::Bias;
  return r;
}

/// A model with its optimizer on one rank, all weights `value`, and all biases.
struct State {
  explicit State(Communicator& comm, float value)
      : recipe(recipe_with_bias()),
        sharding(comm, recipe.model, recipe.parallel),
        model(recipe.model, ctx, true, sharding.experts()),
        optimizer(ctx, model.parameters(), sharding.mesh()) {
    for (const CheckpointPiece& p : owned_pieces(optimizer)) fill(p.view, value);
    fill(model.selection_bias(), value);
  }
  static void fill(const TensorView& view, float value) { std::fill_n(view.data<float>(), view.numel(), value); }
  Context ctx;
  Recipe recipe;
  Sharding sharding;
  LanguageModel model;
  Optimizer optimizer;
};

// The newest checkpoint has a selection bias and is damaged; the one before is of the time before the run had any. What
// the damaged one has left in memory must not be trained on.
TEST(ModelPieces, ADamagedCheckpointLeavesNoSelectionBias) {
  const test::TemporaryDirectory directory;
  test::run_ranks(1, [&](Communicator& comm) {
    {
      const State old(comm, 1), newer(comm, 2);
      save_checkpoint(comm, directory.path(), 10, owned_pieces(old.optimizer), {});
      save_checkpoint(comm, directory.path(), 20, pieces_to_save(newer.model, newer.optimizer, true), {});
    }
    const fs::path shard = directory.path() / "step-00000020" / "shard-00000-of-00001.h5";
    test::flip_byte(shard, fs::file_size(shard) - 1);
    State state(comm, 7);
    Session session(comm.split(0, 0), 1);
    const auto changes = nlohmann::json::array({{{"key", "moe.balance"}, {"step", 10}}});
    std::vector<std::int64_t> tried;
    const auto found = load_newest(session, directory.path(), [&](const FoundCheckpoint& c) {
      tried.push_back(c.manifest.step);
      return pieces_to_load(state.ctx, comm, state.model, state.optimizer, c.manifest, changes);
    });
    ASSERT_TRUE(found.has_value());
    EXPECT_EQ(tried, (std::vector<std::int64_t>{20, 10}));
    EXPECT_EQ(found->manifest.step, 10);
    for (const CheckpointPiece& p : owned_pieces(state.optimizer))
      for (const float x : test::values_of<float>(p.view)) ASSERT_EQ(x, 1) << p.name << " " << p.role;
    for (const float x : test::values_of<float>(state.model.selection_bias())) ASSERT_EQ(x, 0);
  });
}

// Of a run that goes on beside a reader: what is gone was not damaged, and a newer one is there.
TEST(ModelPieces, ACheckpointThatIsRemovedMeanwhileIsNoDamage) {
  const test::TemporaryDirectory directory;
  test::run_ranks(2, [&](Communicator& comm) {
    Session session(comm.split(0, comm.rank()), 1);
    State state(comm, 1);
    save_checkpoint(comm, directory.path(), 10, pieces_to_save(state.model, state.optimizer, comm.rank() == 0), {});
    int calls = 0;
    const auto found = load_newest(session, directory.path(), [&](const FoundCheckpoint&) {
      if (calls++ == 0) {  // the job beside saves, and removes the old one
        save_checkpoint(comm, directory.path(), 20, pieces_to_save(state.model, state.optimizer, comm.rank() == 0), {});
        if (comm.rank() == 0) fs::remove_all(directory.path() / "step-00000010");
        comm.barrier();
      }
      return owned_pieces(state.optimizer);
    });
    ASSERT_TRUE(found.has_value());
    EXPECT_EQ(found->manifest.step, 20);
  });
}

}  // namespace
}  // namespace emox
