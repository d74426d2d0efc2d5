// Damage is noticed and named, and the previous checkpoint is found instead.
#include <gtest/gtest.h>

#include "runtime/files/files.h"
#include "runtime/telemetry/log.h"
#include "tests/parallel/checkpoint_model.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using test::CheckpointModel;
using test::io_error_of;
using test::save_model;

class CheckpointDamage : public ::testing::Test {
 protected:
  void SetUp() override {
    save_model(root(), 10, 1, 2);
    save_model(root(), 20, 2, 2);
  }

  fs::path root() const { return directory_.path(); }
  fs::path newest() const { return root() / "step-00000020"; }
  fs::path shard() const { return newest() / "shard-00001-of-00002.h5"; }

  /// All ranks refuse the newest with this file's name, and no tensor has been touched; the one before is found.
  void expect_refused(const fs::path& named) const {
    test::run_ranks(2, [&](Communicator& comm) {
      const CheckpointModel model(77);
      const std::string text = io_error_of([&] { load_checkpoint(comm, newest(), model.pieces()); });
      EXPECT_NE(text.find(named.string()), std::string::npos) << text;
      const auto found = find_latest(comm, root(), nullptr);
      ASSERT_TRUE(found.has_value());
      EXPECT_EQ(found->path, root() / "step-00000010");
      EXPECT_EQ(found->manifest.step, 10);
    });
  }

  test::TemporaryDirectory directory_;
};

TEST_F(CheckpointDamage, NoneIsTheNewest) {
  const auto found = test::latest_in(root());
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->path, newest());
  EXPECT_EQ(test::verified(newest()).step, 20);
  EXPECT_FALSE(test::latest_in(root() / "nowhere").has_value());
}

TEST_F(CheckpointDamage, AByteOfHdf5Metadata) {
  test::flip_byte(shard(), 9);  // the superblock
  expect_refused(shard());
}

TEST_F(CheckpointDamage, AByteOfData) {
  // The last bytes of a contiguous file are a dataset's.
  test::flip_byte(shard(), fs::file_size(shard()) - 8);
  expect_refused(shard());
}

TEST_F(CheckpointDamage, ATruncatedFile) {
  fs::resize_file(shard(), fs::file_size(shard()) / 2);
  expect_refused(shard());
}

TEST_F(CheckpointDamage, AMissingFile) {
  fs::remove(shard());
  expect_refused(shard());
}

TEST_F(CheckpointDamage, AMissingManifest) {
  fs::remove(newest() / "manifest.json");
  expect_refused(newest() / "manifest.json");
}

TEST_F(CheckpointDamage, AnyByteOfTheManifest) {
  const fs::path manifest = newest() / "manifest.json";
  const std::size_t size = fs::file_size(manifest);
  // Prime steps meet every kind of byte: digits, letters, quotes, white space.
  for (std::size_t at = 0; at < size; at += 997) {
    test::flip_byte(manifest, at);
    const std::string text = io_error_of([&] { read_manifest(newest()); });
    EXPECT_NE(text.find(manifest.string()), std::string::npos) << "byte " << at << ": " << text;
    test::flip_byte(manifest, at);
  }
  EXPECT_EQ(read_manifest(newest()).step, 20);
  test::flip_byte(manifest, size - 1);
  expect_refused(manifest);
}

TEST_F(CheckpointDamage, ACheckpointUnderAnotherStepsName) {
  fs::rename(newest(), root() / "step-00000030");
  const auto found = test::latest_in(root());
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->path, root() / "step-00000010");
}

TEST_F(CheckpointDamage, TheLogSaysWhatWasSkippedAndWhy) {
  test::flip_byte(shard(), 100);
  const std::string file = (root() / "log.txt").string();
  {
    Log log(1, file);  // rank 1 keeps off the console
    EXPECT_TRUE(test::latest_in(root(), &log).has_value());
  }
  const std::string text = try_read_text(file).text;
  EXPECT_NE(text.find("skipping the checkpoint " + newest().string()), std::string::npos) << text;
  EXPECT_NE(text.find(shard().string() + " is damaged"), std::string::npos) << text;
}

TEST_F(CheckpointDamage, NothingIntact) {
  for (const char* step : {"step-00000010", "step-00000020"}) fs::remove(root() / step / "manifest.json");
  EXPECT_FALSE(test::latest_in(root()).has_value());
  EXPECT_TRUE(prune_checkpoints(root(), 1, 0).empty());
}

}  // namespace
}  // namespace emox
