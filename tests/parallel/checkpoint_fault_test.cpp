// Damaged, of another version, not readable: only the first is passed over for an older checkpoint, removed or moved
// aside; none is ever replaced.
#include "runtime/files/file_error.h"

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "launch/run/session.h"
#include "launch/run/trainer.h"
#include "parallel/checkpoint/inspect.h"
#include "parallel/checkpoint/layout.h"
#include "parallel/checkpoint/saver.h"
#include "parallel/checkpoint/verify.h"
#include "parallel/comm/together.h"
#include "runtime/files/files.h"
#include "tests/parallel/checkpoint_model.h"
#include "tests/support/ordinary_user.h"
#include "tests/support/training.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using test::OrdinaryUser;
using test::save_model;

std::string content_of(const fs::path& file) { return try_read_text(file).text; }

/// Of all files below it, by name.
std::map<std::string, std::string> contents(const fs::path& directory) {
  std::map<std::string, std::string> all;
  for (const auto& entry : fs::recursive_directory_iterator(directory))
    if (entry.is_regular_file()) all[entry.path().lexically_relative(directory).string()] = content_of(entry.path());
  return all;
}

/// As another emox would have written it.
void set_version(const fs::path& checkpoint, int version) {
  const fs::path file = checkpoint / "manifest.json";
  auto content = nlohmann::json::parse(content_of(file));
  content["version"] = version;
  content["libraries"]["emox"] = "9.8";
  std::ofstream(file, std::ios::binary) << signed_text(content);
}

class CheckpointFault : public ::testing::Test {
 protected:
  void SetUp() override {
    save_model(root(), 10, 1, 2);
    save_model(root(), 20, 2, 2);
    OrdinaryUser::give(directory_.path());
  }
  fs::path root() const { return directory_.path() / "checkpoints"; }
  fs::path at(int step) const { return root() / step_directory_name(step); }
  fs::path newest() const { return at(20); }

  /// Both ranks throw E, whichever way they look, and say this; nothing is pruned.
  template <typename E>
  void expect_refused(const std::vector<std::string>& parts) const {
    const OrdinaryUser user;
    test::run_ranks(2, [&](Communicator& comm) {
      for (const Glance glance : {Glance::Content, Glance::Sizes}) {
        try {
          find_latest(comm, root(), nullptr, glance);
          ADD_FAILURE() << "passed over or taken";
        } catch (const E& e) {
          for (const std::string& part : parts) EXPECT_NE(e.message().find(part), std::string::npos) << e.message();
          EXPECT_NE(e.message().find("neither passed over nor replaced"), std::string::npos) << e.message();
        }
      }
      EXPECT_THROW(verify_checkpoint(comm, newest()), E);
      const CheckpointSurvey survey = survey_checkpoint(comm, newest());
      EXPECT_FALSE(survey.intact());
      EXPECT_TRUE(survey.damage.empty()) << survey.damage.front();
      ASSERT_FALSE(survey.unknown.empty());
      EXPECT_NE(survey.unknown.front().find(parts.front()), std::string::npos) << survey.unknown.front();
    });
    EXPECT_THROW(prune_checkpoints(root(), 0, 0), E);
    // Nor when it is an old one.
    EXPECT_TRUE(prune_checkpoints(root(), 0, 0, 30) == std::vector<fs::path>{at(10)});
    EXPECT_FALSE(fs::exists(at(10)));
    EXPECT_TRUE(fs::exists(newest()));
  }

  test::TemporaryDirectory directory_;
};

TEST_F(CheckpointFault, ANewerFormatVersion) {
  set_version(newest(), 5);
  expect_refused<OtherVersionError>({(newest() / "manifest.json").string(), "by emox 9.8 in format version 5",
                                     "reads versions 3 to 4", "or with a newer one"});
}

// Whatever its checksum: another version may compute it in another way.
TEST_F(CheckpointFault, ANewerFormatVersionWithAnotherChecksum) {
  const fs::path file = newest() / "manifest.json";
  std::string text = content_of(file);
  const std::string key = "\"version\": 4";
  text.replace(text.rfind(key), key.size(), "\"version\": 5");
  const std::string checksum = "\"checksum\": \"";
  text.replace(text.find(checksum) + checksum.size(), 32, std::string(32, 'a'));
  std::ofstream(file, std::ios::binary) << text;
  expect_refused<OtherVersionError>({file.string(), "in format version 5"});
}

TEST_F(CheckpointFault, AnOlderFormatVersion) {
  set_version(newest(), 2);
  expect_refused<OtherVersionError>({"in format version 2", "go on with the emox that wrote it"});
}

TEST_F(CheckpointFault, AVersionThatIsDamagedIsNoOtherVersion) {
  const std::string key = "\"version\": ";
  const std::string good = content_of(newest() / "manifest.json");
  for (const char wrong : {'2', '3', '5'}) {
    std::string text = good;
    text[text.find(key) + key.size()] = wrong;
    std::ofstream(newest() / "manifest.json", std::ios::binary) << text;
    test::run_ranks(2, [&](Communicator& comm) {
      EXPECT_THROW(verify_checkpoint(comm, newest()), DamagedError);
      EXPECT_EQ(find_latest(comm, root(), nullptr)->path, at(10));
    });
  }
}

TEST_F(CheckpointFault, AShardThatMayNotBeRead) {
  const fs::path shard = newest() / shard_file_name(1, 2);
  fs::permissions(shard, fs::perms::none);
  expect_refused<UnreadableError>({shard.string(), "Permission denied", "mode 0000", "chmod"});
}

TEST_F(CheckpointFault, AManifestThatMayNotBeRead) {
  fs::permissions(newest() / "manifest.json", fs::perms::none);
  expect_refused<UnreadableError>({(newest() / "manifest.json").string(), "Permission denied", "chmod"});
}

TEST_F(CheckpointFault, ADirectoryThatMayNotBeSearched) {
  fs::permissions(newest(), fs::perms::none);
  expect_refused<UnreadableError>({newest().string(), "Permission denied", "mode 0000"});
  fs::permissions(newest(), fs::perms::owner_all);
}

TEST_F(CheckpointFault, ADirectoryOfCheckpointsThatMayNotBeListed) {
  fs::permissions(root(), fs::perms::none);
  {
    const OrdinaryUser user;
    test::run_ranks(2, [&](Communicator& comm) {
      const std::string text = test::io_error_of([&] { find_latest(comm, root(), nullptr); });
      EXPECT_NE(text.find("cannot look into " + root().string() + ": Permission denied"), std::string::npos) << text;
      EXPECT_THROW(find_latest(comm, root(), nullptr), UnreadableError);
    });
  }
  fs::permissions(root(), fs::perms::owner_all);
}

TEST_F(CheckpointFault, AShardOnStorageThatIsAway) {
  const fs::path shard = newest() / shard_file_name(0, 2), away = directory_.path() / "archive";
  fs::rename(shard, away);
  fs::create_symlink(away, shard);
  test::run_ranks(2, [&](Communicator& comm) { EXPECT_EQ(find_latest(comm, root(), nullptr)->path, newest()); });
  fs::remove(away);
  expect_refused<UnreadableError>({shard.string(), "a link to something that is not there now"});
}

TEST_F(CheckpointFault, ACheckpointOnStorageThatIsAway) {
  const fs::path away = directory_.path() / "archive";
  fs::rename(newest(), away);
  fs::create_directory_symlink(away, newest());
  test::run_ranks(2, [&](Communicator& comm) { EXPECT_EQ(find_latest(comm, root(), nullptr)->path, newest()); });
  fs::remove_all(away);
  test::run_ranks(2, [&](Communicator& comm) { EXPECT_THROW(find_latest(comm, root(), nullptr), UnreadableError); });
}

TEST_F(CheckpointFault, DamageAndAnotherReasonInOneCheckpoint) {
  test::flip_byte(newest() / shard_file_name(0, 2), 100);
  fs::permissions(newest() / shard_file_name(1, 2), fs::perms::none);
  const OrdinaryUser user;
  test::run_ranks(2, [&](Communicator& comm) { EXPECT_THROW(find_latest(comm, root(), nullptr), UnreadableError); });
}

TEST_F(CheckpointFault, WhatASaverDidNotWriteIsMovedAsideAndWhatItWroteIsReplaced) {
  const auto before = contents(newest());
  const auto comm = make_self_communicator();
  const test::CheckpointModel first(3), second(4);
  CheckpointSaver saver(*comm, root(), first.pieces(), {.retention = {.keep_last = 1}});
  const SavedCheckpoint saved = saver.save(20, test::some_meta());
  EXPECT_EQ(saved.path, newest());
  ASSERT_TRUE(saved.aside.string().starts_with(newest().string() + ".aside-2")) << saved.aside;
  EXPECT_EQ(contents(saved.aside), before);
  EXPECT_NE(contents(newest()), before);
  EXPECT_EQ(saver.save(20, test::some_meta()).aside, "");
  EXPECT_EQ(test::names_in(root()), (std::vector<std::string>{"step-00000020", saved.aside.filename().string()}));
  // Not found as a checkpoint, never removed, and another one gets another name.
  remove_unfinished_checkpoints(root());
  save_model(root(), 20, 5);
  EXPECT_EQ(list_checkpoints(root()), std::vector<fs::path>{newest()});
  EXPECT_EQ(test::names_in(root()).size(), 3U);
  EXPECT_EQ(test::verified(saved.aside).step, 20);
}

// train(), which goes on from what it finds.
class RunFault : public ::testing::Test {
 protected:
  RunFault() : recipe_(test::tiny_recipe(test::make_text_sources(directory_.path()))) {
    recipe_.run.dir = (directory_.path() / "run").string();
    recipe_.eval.final = false;
    recipe_.train.steps = 6;
    recipe_.checkpoint.every_steps = 2;
    recipe_.run.stop_after_step = 4;
    train_on(recipe_);
    recipe_.run.stop_after_step = 0;
    before_ = contents(checkpoints());
    OrdinaryUser::give(directory_.path());
  }
  static void train_on(const Recipe& recipe) {
    test::run_ranks(2, [&](Communicator& comm) {
      Session session(comm.split(0, comm.rank()), 1);
      train(session, recipe, {"test"});
    });
  }
  fs::path checkpoints() const { return fs::path(recipe_.run.dir) / "checkpoints"; }
  fs::path newest() const { return checkpoints() / step_directory_name(4); }

  void expect_refused(const std::vector<std::string>& parts) const {
    Recipe warm = recipe_;
    warm.run.dir = (directory_.path() / "warm").string();
    for (const std::string& source : {recipe_.run.dir, newest().string()}) {
      warm.run.warm_start = source;
      for (const Recipe& recipe : {recipe_, warm}) try {
          train_on(recipe);
          ADD_FAILURE() << "it went on";
        } catch (const UsageError& e) {
          for (const std::string& part : parts) EXPECT_NE(e.message().find(part), std::string::npos) << e.message();
        }
    }
    fs::remove_all(warm.run.dir);
  }

  test::TemporaryDirectory directory_;
  Recipe recipe_;
  std::map<std::string, std::string> before_;
};

TEST_F(RunFault, NeitherAnotherVersionNorWhatMayNotBeReadIsReplaced) {
  set_version(newest(), 5);
  const auto then = contents(checkpoints());
  expect_refused({"in format version 5", "newer"});
  EXPECT_EQ(contents(checkpoints()), then);
  set_version(newest(), 3);

  const fs::path shard = newest() / shard_file_name(1, 2);
  fs::permissions(shard, fs::perms::none);
  {
    const OrdinaryUser user;
    expect_refused({shard.string(), "Permission denied", "chmod"});
  }
  fs::permissions(shard, fs::perms::owner_all);
  EXPECT_EQ(contents(checkpoints()).size(), before_.size());
  EXPECT_EQ(content_of(shard), before_.at(shard.lexically_relative(checkpoints()).string()));

  // Damage is passed over, and the damaged one kept beside the new one.
  test::flip_byte(shard, 200);
  train_on(recipe_);
  std::vector<std::string> names;
  for (const std::string& name : test::names_in(checkpoints()))
    if (name.find(".aside-") != std::string::npos) names.push_back(name);
  ASSERT_EQ(names.size(), 1U);
  EXPECT_TRUE(names[0].starts_with("step-00000004.aside-")) << names[0];
  const std::string log = content_of(fs::path(recipe_.run.dir) / "log" / "rank-00000.txt");
  EXPECT_NE(log.find("it is kept as " + (checkpoints() / names[0]).string()), std::string::npos) << log;
  EXPECT_EQ(test::latest_in(checkpoints())->manifest.step, 6);
}

}  // namespace
}  // namespace emox
