// What is planned for ranks that do not run is what ranks do.
#include "launch/plan/state_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <tuple>

#include "launch/config/recipe_file.h"
#include "launch/run/model_pieces.h"
#include "launch/run/sharding.h"
#include "model/optim/optimizer.h"
#include "parallel/checkpoint/checkpoint.h"
#include "parallel/comm/thread_world.h"
#include "runtime/core/idx.h"
#include "tests/support/ranks.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox {
namespace {

using Piece = std::tuple<std::string, std::string, std::int64_t, std::int64_t, std::string, std::string>;

std::set<Piece> pieces_of(const Manifest& manifest) {
  std::set<Piece> pieces;
  for (const ManifestTensor& t : manifest.tensors) pieces.insert({t.name, t.role, t.begin, t.end, t.file, t.dataset});
  EXPECT_EQ(pieces.size(), manifest.tensors.size());
  return pieces;
}

Recipe recipe_for(int ranks, std::int64_t expert_parallel) {
  Recipe r = test::tiny_recipe({"made-up:1:nowhere"});
  r.model.num_experts = 8, r.model.top_k = 3;  // 7 routed ones: unequal shares
  r.train.batch_sequences = std::max<std::int64_t>(r.train.batch_sequences, ranks);
  r.parallel.expert_parallel = expert_parallel;
  return r;
}

TEST(StatePlan, IsWhatRanksSaveAndSend) {
  for (const auto& [ranks, expert_parallel, a_node] :
       {std::tuple{1, 1, 1}, {4, 2, 2}, {4, 1, 2}, {6, 3, 3}, {6, 2, 6}, {8, 2, 2}, {8, 4, 2}, {12, 4, 2}}) {
    SCOPED_TRACE(testing::Message() << ranks << " ranks, experts over " << expert_parallel << ", nodes of " << a_node);
    const Recipe recipe = recipe_for(ranks, expert_parallel);
    const StatePlan plan = plan_state(recipe, ranks, a_node);
    const test::TemporaryDirectory directory;
    std::vector<Traffic> gradients(idx(ranks)), weights = gradients;
    ThreadWorld world(ranks, {.ranks_per_node = a_node});
    test::run_ranks(world, [&](Communicator& comm) {
      Context ctx;
      Sharding sharding(comm, recipe.model, recipe.parallel);
      LanguageModel model(recipe.model, ctx, true, sharding.experts());
      Optimizer optimizer(ctx, model.parameters(), sharding.mesh());
      const auto traffic = [&] {
        Traffic t = sharding.mesh().world().traffic();
        if (&sharding.mesh().replicas() != &sharding.mesh().world()) t += sharding.mesh().replicas().traffic();
        return t;
      };
      optimizer.reduce_gradients(ctx);
      gradients[idx(comm.rank())] = traffic();
      optimizer.gather_weights(ctx);
      weights[idx(comm.rank())] = traffic();
      const auto pieces = pieces_to_save(model, optimizer, comm.rank() == 0);
      save_checkpoint(comm, directory.path(), 1, pieces, {});
    });
    EXPECT_EQ(pieces_of(plan.manifest), pieces_of(read_manifest(directory.path() / "step-00000001")));
    // The first or the last coordinate's first replica, whichever receives more from other nodes.
    Traffic both = plan.gradients;
    both += plan.weights;
    EXPECT_TRUE(plan.gradients == gradients[0] || plan.gradients == gradients[idx(expert_parallel - 1)]);
    EXPECT_TRUE(both == weights[0] || both == weights[idx(expert_parallel - 1)]);
  }
}

// The published model on 1,024 ranks: an array each for experts, and for dense ones three more at each cut.
TEST(StatePlan, AThousandRanksHaveFewPieces) {
  for (const std::int64_t expert_parallel : {8, 64}) {
    const Recipe recipe = load_recipe(fmt::format("{}/launch/recipes/emo-1b14b.ini", EMOX_SOURCE_DIR),
                                      {fmt::format("--parallel.expert_parallel={}", expert_parallel)});
    const StatePlan plan = plan_state(recipe, 1024, 8);
    EXPECT_LE(plan.manifest.tensors.size(), 30000U);
    EXPECT_LE(manifest_text(plan.manifest).size(), 12'000'000U);
    std::set<std::pair<std::string, std::string>> arrays;
    std::int64_t cut = 0;
    for (const ManifestTensor& t : plan.manifest.tensors) {
      arrays.insert({t.name, t.role});
      if (t.begin > 0) {
        ++cut;
        EXPECT_EQ(t.name.find(".experts."), t.name.find(".experts.127.")) << t.name << " is cut";
      }
    }
    EXPECT_EQ(plan.manifest.tensors.size(), arrays.size() + idx(cut));
    EXPECT_LE(cut, 3 * 1023);
  }
}

}  // namespace
}  // namespace emox
