// What ranks settle together before they train: that they read the same, and what the balance loss sees of a step.
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "launch/run/balance_group.h"
#include "launch/run/same_on_ranks.h"
#include "launch/run/session.h"
#include "launch/run/sharding.h"
#include "launch/run/trainer.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "tests/support/ranks.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox {
namespace {

/// What each rank's UsageError says; "" where there was none.
std::vector<std::string> usage_errors(int ranks, const std::function<void(Communicator&)>& body) {
  std::vector<std::string> errors(idx(ranks));
  test::run_ranks(ranks, [&](Communicator& comm) {
    try {
      body(comm);
    } catch (const UsageError& e) {
      errors[idx(comm.rank())] = e.message();
    }
  });
  return errors;
}

TEST(SameOnRanks, TheLowestRankThatDiffersIsNamedOnAll) {
  for (const int ranks : {1, 2, 4})
    for (const std::string& e :
         usage_errors(ranks, [](Communicator& comm) { require_same(comm, "the recipe", "a\nb\n"); }))
      EXPECT_EQ(e, "");
  const auto errors = usage_errors(4, [](Communicator& comm) {
    const char* texts[] = {"steps = 5\nseed = 1\n", "steps = 5\nseed = 1\n", "steps = 5\nseed = 12\n", "steps = 6\n"};
    require_same(comm, "the recipe", texts[comm.rank()]);
  });
  for (const std::string& e : errors)
    EXPECT_TRUE(
        e.starts_with("the recipe is not the same on all ranks: rank 2 has 'seed = 12' where rank 0 has 'seed = 1'"))
        << e;
}

TEST(SameOnRanks, ATextThatIsOnlyLongerIsAnother) {
  for (const bool longer : {true, false}) {
    const auto errors = usage_errors(2, [&](Communicator& comm) {
      require_same(comm, "the table", (comm.rank() == 1) == longer ? "one\ntwo" : "one\n");
    });
    for (const std::string& e : errors)
      EXPECT_NE(e.find(longer ? "rank 1 has 'two' where rank 0 has nothing more"
                              : "rank 1 has nothing more where rank 0 has 'two'"),
                std::string::npos)
          << e;
  }
}

TEST(SameOnRanks, HeldOutTextIsComparedByToken) {
  const auto set = [](std::int32_t last) {
    return HeldOutSet{{{"gnu", {{1, 2}, {3, last}}, 4, {}}}, {"web: one file"}};
  };
  for (const std::string& e : usage_errors(2, [&](Communicator& comm) { require_same_held_out(comm, set(4)); }))
    EXPECT_EQ(e, "");
  const auto errors = usage_errors(2, [&](Communicator& comm) { require_same_held_out(comm, set(4 + comm.rank())); });
  for (const std::string& e : errors)
    EXPECT_NE(e.find("rank 1 has 'gnu: 2 documents, 4 tokens, "), std::string::npos) << e;
  EXPECT_NE(digest(std::vector<std::vector<std::int32_t>>{{1}, {2, 3}}),
            digest(std::vector<std::vector<std::int32_t>>{{1, 2}, {3}}));
}

// A table on every node's own disk: experts would be looked for where they are not.
TEST(SameOnRanks, PlacementTables) {
  const test::TemporaryDirectory directory;
  Recipe recipe = test::tiny_recipe({"made-up:1:nowhere"});
  recipe.parallel.expert_parallel = 2;
  recipe.parallel.placement = PlacementKind::File;
  const auto write = [&](int rank, std::uint64_t seed) {
    const auto path = directory.path() / ("rank" + std::to_string(rank));
    std::ofstream(path) << ExpertPlacement::random(2, 8, 2, seed).to_json();
    return path.string();
  };
  const std::vector<std::string> same{write(0, 1), write(1, 1)}, other{same[0], write(2, 2)};
  const auto errors_with = [&](const std::vector<std::string>& files) {
    return usage_errors(2, [&](Communicator& comm) {
      Recipe mine = recipe;
      mine.parallel.placement_file = files[idx(comm.rank())];
      const Sharding sharding(comm, mine.model, mine.parallel);
    });
  };
  for (const std::string& e : errors_with(same)) EXPECT_EQ(e, "");
  for (const std::string& e : errors_with(other))
    EXPECT_NE(e.find("is not the same on all ranks: rank 1 has "), std::string::npos) << e;
}

class BalanceGroups : public testing::Test {
 protected:
  BalanceGroups() : recipe_(test::tiny_recipe({"made-up:1:nowhere"})) { recipe_.train.batch_sequences = 12; }
  std::string groups(BalanceScope scope, std::int64_t micro, int ranks) {
    recipe_.model.balance_scope = scope;
    recipe_.train.micro_batch_sequences = micro;
    return balance_groups(recipe_, ranks);
  }
  Recipe recipe_;
};

TEST_F(BalanceGroups, AreWhatAStepIsCutInto) {
  for (const int ranks : {1, 2, 5}) EXPECT_EQ(groups(BalanceScope::Step, 2, ranks), "1 of 12");
  EXPECT_EQ(groups(BalanceScope::MicroBatch, 4, 1), "3 of 4");
  EXPECT_EQ(groups(BalanceScope::MicroBatch, 4, 2), "1 of 8 and 1 of 4");
  EXPECT_EQ(groups(BalanceScope::MicroBatch, 4, 3), "1 of 12");
  EXPECT_EQ(groups(BalanceScope::MicroBatch, 2, 2), "3 of 4");
  EXPECT_EQ(groups(BalanceScope::MicroBatch, 100, 5), "1 of 12");
  EXPECT_EQ(groups(BalanceScope::Local, 4, 1), "3 of 4");
  EXPECT_EQ(groups(BalanceScope::Local, 4, 3), "3 of 4");
  EXPECT_EQ(groups(BalanceScope::Local, 4, 2), "2 of 4 and 2 of 2");
  EXPECT_EQ(groups(BalanceScope::Local, 2, 5), "5 of 2 and 2 of 1");
  recipe_.model.balance = BalanceMode::Bias;
  EXPECT_EQ(groups(BalanceScope::Local, 2, 5), "");
  EXPECT_EQ(describe_balance_groups(recipe_, 5), "");
}

TEST_F(BalanceGroups, AResumeOnOtherRanksIsAnotherObjective) {
  Manifest found;
  found.mesh = {{"expert_parallel", 1}, {"data_parallel", 2}};
  recipe_.model.balance_scope = BalanceScope::MicroBatch;
  recipe_.train.micro_batch_sequences = 2;
  recipe_.run.dir = "runs/x";
  Recipe now = recipe_;
  const auto refusal = [&](int ranks) -> std::string {
    try {
      const auto change = check_balance_groups(found, recipe_, now, ranks);
      return change ? change->before + " -> " + change->now : "";
    } catch (const UsageError& e) {
      return e.message();
    }
  };
  EXPECT_EQ(refusal(2), "");
  EXPECT_EQ(refusal(3),
            "moe.balance_scope = micro_batch: the balance loss of the run in runs/x saw the sequences of a step in "
            "groups, 3 of 4 (on 2 rank(s), train.micro_batch_sequences = 2); on 3 rank(s) with 2 it would be 2 of 6, "
            "another objective. Use 2 rank(s), or let this resume change it with --run.change=moe.balance_scope");
  EXPECT_NE(
      refusal(4).find("Use --train.micro_batch_sequences=1 --run.change=train.micro_batch_sequences on these ranks"),
      std::string::npos)
      << refusal(4);
  now.train.micro_batch_sequences = 1;
  EXPECT_EQ(refusal(4), "");  // ranks x micro-batch stays 4
  EXPECT_NE(refusal(2), "");
  now.train.micro_batch_sequences = 2;
  for (const char* key : {"moe.balance_scope", "train.steps, train.micro_batch_sequences"}) {
    now.run.change = key;
    EXPECT_EQ(refusal(3), "3 of 4 -> 2 of 6") << key;
  }
  now.run.change = "train.steps";
  EXPECT_NE(refusal(3), "");
  found.mesh = nullptr;  // a subset: nothing was trained
  EXPECT_EQ(refusal(3), "");
}

TEST_F(BalanceGroups, OtherScopesAreFree) {
  Manifest found;
  found.mesh = {{"expert_parallel", 1}, {"data_parallel", 2}};
  for (const bool step : {true, false}) {
    recipe_.model.balance_scope = step ? BalanceScope::Step : BalanceScope::Local;
    recipe_.model.balance = step ? BalanceMode::Aux : BalanceMode::None;
    EXPECT_FALSE(check_balance_groups(found, recipe_, recipe_, 5));
  }
}

class OtherRanks : public testing::Test {
 protected:
  OtherRanks() : recipe_(test::tiny_recipe(test::make_text_sources(directory_.path()))) {
    recipe_.run.dir = (directory_.path() / "run").string();
    recipe_.eval.final = false;
    recipe_.train.steps = 4, recipe_.train.warmup_steps = 1, recipe_.train.micro_batch_sequences = 2;
  }
  void train_on(int ranks, std::int64_t stop, const std::string& change = "") const {
    Recipe r = recipe_;
    r.run.stop_after_step = stop, r.run.change = change;
    test::run_ranks(ranks, [&](Communicator& comm) {
      Session session(comm.split(0, comm.rank()), 1);
      train(session, r, {"test"});
    });
  }
  test::TemporaryDirectory directory_;
  Recipe recipe_;
};

TEST_F(OtherRanks, GoOnWithTheSameObjectiveOrAreToldToChangeIt) {
  recipe_.model.balance_scope = BalanceScope::MicroBatch;
  train_on(2, 2);
  try {
    train_on(3, 3);
    FAIL() << "another objective, and nothing said";
  } catch (const UsageError& e) {
    EXPECT_NE(e.message().find("in groups, 3 of 4 (on 2 rank(s)"), std::string::npos) << e.message();
  }
  train_on(3, 3, "moe.balance_scope");
  train_on(3, 4);  // as the newest checkpoint has it now
  const Manifest saved = read_manifest(directory_.path() / "run" / "checkpoints" / "step-00000004");
  EXPECT_EQ(saved.extra.at("changes"),
            nlohmann::json::parse(R"([{"step": 2, "key": "moe.balance_scope", "old": "3 of 4", "new": "2 of 6"}])"));
}

// Under the default scope nothing but rounding depends on the ranks.
TEST_F(OtherRanks, AreFreeUnderTheStepScope) {
  train_on(2, 2);
  train_on(3, 4);
  EXPECT_EQ(test::read_metrics(directory_.path() / "run").size(), 4U);
}

}  // namespace
}  // namespace emox
