// A run knows its data by content: on two ranks, resumed with the same files elsewhere, and refused with others.
#include "launch/run/run_data.h"

#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <nlohmann/json.hpp>

#include "data/format/npy.h"
#include "launch/run/run_directory.h"
#include "launch/run/session.h"
#include "launch/run/trainer.h"
#include "parallel/checkpoint/checkpoint.h"
#include "runtime/core/error.h"
#include "tests/support/checkpoints.h"
#include "tests/support/ranks.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

class RunDataTest : public testing::Test {
 protected:
  RunDataTest() : recipe_(test::tiny_recipe(test::make_text_sources(directory_.path() / "text"))) {
    recipe_.eval.final = false;
    recipe_.train.steps = 4;
    recipe_.run.dir = (directory_.path() / "run").string();
    first_ = SourceSpec::parse(recipe_.data.source[0]);
    second_ = SourceSpec::parse(recipe_.data.source[1]);
    EXPECT_EQ(first_.weight, 2);
    EXPECT_EQ(second_.weight, 1);
  }
  void train_until(const Recipe& recipe, std::int64_t stop) const {
    Recipe r = recipe;
    r.run.stop_after_step = stop;
    test::run_ranks(2, [&](Communicator& comm) {
      Session session(comm.split(0, comm.rank()), 1);
      train(session, r, {"test"});
    });
  }
  /// What a resume says: it must be refused, and nothing be made.
  std::string refusal(const Recipe& recipe) const {
    const auto before = fs::last_write_time(fs::path(recipe.run.dir) / "run.json");
    try {
      train_until(recipe, 2);
    } catch (const UsageError& e) {
      EXPECT_EQ(fs::last_write_time(fs::path(recipe.run.dir) / "run.json"), before);
      return e.message();
    }
    ADD_FAILURE() << "it was resumed";
    return "";
  }
  static std::string line(const SourceSpec& source, const std::string& path) {
    return source.label + ":" + std::to_string(source.weight) + ":" + path;
  }
  static void holds(const std::string& text, const std::vector<std::string>& parts) {
    for (const std::string& part : parts)
      EXPECT_NE(text.find(part), std::string::npos) << "no '" << part << "' in: " << text;
  }
  Manifest latest() const { return read_manifest(test::latest_in(fs::path(recipe_.run.dir) / "checkpoints")->path); }
  /// Puts `file` back when the object goes.
  class Kept {
   public:
    explicit Kept(fs::path file) : file_(std::move(file)), copy_(file_.string() + ".kept") {
      fs::copy_file(file_, copy_);
    }
    ~Kept() { fs::rename(copy_, file_); }

   private:
    fs::path file_, copy_;
  };

  test::TemporaryDirectory directory_;
  Recipe recipe_;
  SourceSpec first_, second_;
};

TEST_F(RunDataTest, ResumesWithTheSameTextWhereverItIsAndWithNoOther) {
  train_until(recipe_, 1);
  DataIdentity identity;
  ASSERT_TRUE(data_identity_of(latest(), identity));
  ASSERT_EQ(identity.sources.size(), recipe_.data.source.size());
  EXPECT_EQ(identity.sources[0].label, first_.label);
  ASSERT_EQ(identity.sources[0].train.size(), 1U);
  ASSERT_EQ(identity.sources[0].held_out.size(), 1U);
  const FileIdentity& file = identity.sources[0].train[0];
  EXPECT_EQ(file.path, (fs::path(first_.path) / "train.npy").string());
  EXPECT_EQ(file.layout.bytes, static_cast<std::int64_t>(fs::file_size(file.path)));
  EXPECT_EQ(file.documents, static_cast<std::int64_t>(read_npy_integers(document_index_path(file.path)).size()) - 1);
  std::ifstream in(fs::path(recipe_.run.dir) / "run.json");
  const auto runs = nlohmann::json::parse(in);
  EXPECT_EQ(runs.back().at("data"), latest().extra.at(kDataKey));

  const fs::path train = file.path, held_out = identity.sources[0].held_out[0].path;
  const auto tokens = [](const fs::path& path) {
    std::vector<std::uint16_t> ids;
    for (const std::int64_t id : read_npy_integers(path)) ids.push_back(static_cast<std::uint16_t>(id));
    return ids;
  };
  const auto write = [](const fs::path& path, const std::vector<std::uint16_t>& ids) {
    write_npy(path, std::span<const std::uint16_t>(ids));
  };
  {  // other text under the name
    const Kept kept(train);
    auto ids = tokens(train);
    ids[ids.size() / 2] ^= 1;
    write(train, ids);
    holds(refusal(recipe_), {"source " + first_.label + ": " + train.string() + " has other tokens", "--data.source="});
    ids.push_back(7);
    write(train, ids);
    holds(refusal(recipe_),
          {train.string() + " has " + std::to_string(ids.size()) + " tokens, not " + std::to_string(ids.size() - 1)});
    ids.resize(ids.size() / 2);
    write(train, ids);
    holds(refusal(recipe_), {train.string() + " has " + std::to_string(ids.size()) + " tokens, not"});
  }
  {  // held-out text
    const Kept kept(held_out);
    auto ids = tokens(held_out);
    ids[0] ^= 1;
    write(held_out, ids);
    holds(refusal(recipe_), {held_out.string() + " has other tokens"});
  }
  {  // labels keep their text
    Recipe swapped = recipe_;
    swapped.data.source[0] = line(first_, second_.path);
    swapped.data.source[1] = line(second_, first_.path);
    holds(refusal(swapped), {"source " + first_.label + ": " + second_.path, "source " + second_.label});
    swapped = recipe_;
    std::swap(swapped.data.source[0], swapped.data.source[1]);
    holds(refusal(swapped), {"data.source"});
    swapped = recipe_;
    swapped.data.source[0] = first_.label + ":7:" + first_.path;
    holds(refusal(swapped), {"data.source"});
  }
  // The same bytes elsewhere, without a header there, and another way to write the weight.
  Recipe moved = recipe_;
  const fs::path copy = directory_.path() / "copy";
  fs::create_directories(copy);
  const auto ids = tokens(train);
  std::ofstream(copy / "x.bin", std::ios::binary)
      .write(reinterpret_cast<const char*>(ids.data()), static_cast<std::streamsize>(2 * ids.size()));
  fs::create_directory_symlink(second_.path, copy / "link");
  moved.data.source[0] = first_.label + ":2.0:" + (copy / "." / "x.bin").string();
  moved.data.source[1] = second_.label + ":1e0:" + (copy / "link").string();
  moved.data.token_type = TokenType::Uint16;
  train_until(moved, 2);
  EXPECT_EQ(test::read_metrics(recipe_.run.dir).size(), 2U);
  ASSERT_TRUE(data_identity_of(latest(), identity));
  EXPECT_EQ(identity.sources[0].train[0].path, (copy / "." / "x.bin").string());

  // Other text that is wanted: recorded, and what the run is from then on.
  fs::resize_file(copy / "x.bin", ids.size() / 2 * 2);
  holds(refusal(moved), {"x.bin has ", "--run.change=data.source"});
  moved.run.change = "data.source";
  train_until(moved, 3);
  EXPECT_EQ(latest().extra.at("changes").back().at("key"), "data.source");
  ASSERT_TRUE(data_identity_of(latest(), identity));
  EXPECT_EQ(identity.sources[0].train[0].layout.tokens, static_cast<std::int64_t>(ids.size() / 2));
  moved.run.change.clear();
  train_until(moved, 4);
}

TEST_F(RunDataTest, ACheckpointThatDoesNotKnowIsGoneOnWith) {
  Manifest old;
  old.step = 3;
  DataIdentity none;
  EXPECT_FALSE(data_identity_of(old, none));
  Log log;
  EXPECT_TRUE(check_same_data(old, none, {}, log).empty());
  EXPECT_EQ(compare_with_training(old, none, {}).find("unknown: "), 0U);
  old.extra["data"] = 5;
  EXPECT_THROW(check_same_data(old, none, {}, log), IoError);
}

// One rank's bad file is every rank's error, of the same kind.
TEST_F(RunDataTest, AFileOfTheOtherRankIsRefusedOnAll) {
  const fs::path text = directory_.path() / "book.txt";
  std::ofstream(text) << std::string(300, 'a') << "\n";
  Recipe r = recipe_;
  r.data.source = {first_.label + ":1:" + (fs::path(first_.path) / "train.npy").string(), "b:1:" + text.string()};
  std::atomic<int> refused = 0;
  test::run_ranks(2, [&](Communicator& comm) {
    Session session(comm.split(0, comm.rank()), 1);
    try {
      find_training_data(session, r, {});
    } catch (const UsageError& e) {
      refused += e.message().find("emox corpus --text b=") != std::string::npos ? 1 : 0;
    }
  });
  EXPECT_EQ(refused, 2);
}

}  // namespace
}  // namespace emox
