// Saves in the background, and what a save leaves for people: the link `latest`, the index.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "parallel/checkpoint/checksum.h"
#include "parallel/checkpoint/hdf5_file.h"
#include "parallel/checkpoint/saver.h"
#include "runtime/core/context.h"
#include "tests/parallel/checkpoint_model.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using test::CheckpointModel;
using test::divide_among_ranks;
using test::io_error_of;
using test::names_in;
using test::save_model;
using test::TemporaryDirectory;
using Names = std::vector<std::string>;

/// One rank's saver of the model that every rank holds alike.
struct Saver {
  Saver(Communicator& c, const fs::path& directory, unsigned seed, const SaverOptions& options = {true, {}})
      : comm(c),
        model(seed),
        pieces(divide_among_ranks(model.pieces(), c.rank(), c.size())),
        saver(c, directory, pieces, options) {}

  /// As a training step does: the votes' sum, then the next stage.
  std::optional<SavedCheckpoint> step() {
    const Tensor votes({}, DType::I64, {1});
    std::int64_t& sum = *votes.view().data<std::int64_t>();
    sum = saver.finished() ? 1 : 0;
    comm.all_reduce(votes);
    return saver.running() && sum == comm.size() ? saver.advance() : std::nullopt;
  }
  SavedCheckpoint step_until_saved() {
    for (;;)
      if (auto saved = step()) return *saved;
  }
  void overwrite() {
    for (const CheckpointPiece& p : pieces) std::memset(p.view.raw(), 0x7F, p.view.bytes());
  }

  Context ctx;
  Communicator& comm;
  CheckpointModel model;
  std::vector<CheckpointPiece> pieces;
  CheckpointSaver saver;
};

void expect_same_files(const fs::path& a, const fs::path& b) {
  ASSERT_EQ(names_in(a), names_in(b));
  for (const std::string& name : names_in(a)) EXPECT_EQ(checksum_of_file(a / name), checksum_of_file(b / name)) << name;
}

TEST(CheckpointSaver, InTheBackgroundWritesWhatWasThereAtTheStart) {
  for (const int ranks : {1, 3}) {
    const TemporaryDirectory at_once, background;
    const fs::path expected = save_model(at_once.path(), 7, 5, ranks);
    test::run_ranks(ranks, [&](Communicator& comm) {
      Saver s(comm, background.path(), 5);
      EXPECT_FALSE(s.saver.running());
      s.saver.start(s.ctx, 7, test::some_meta());
      s.overwrite();
      EXPECT_TRUE(s.saver.running());
      const SavedCheckpoint saved = s.step_until_saved();
      EXPECT_EQ(saved.path, background.path() / "step-00000007");
      EXPECT_EQ(saved.step, 7);
      EXPECT_FALSE(s.saver.running());
    });
    expect_same_files(background.path() / "step-00000007", expected);
  }
}

TEST(CheckpointSaver, TheSameSaverSavesManyTimesAndKeepsTheLastTwo) {
  const TemporaryDirectory directory;
  test::run_ranks(2, [&](Communicator& comm) {
    Saver s(comm, directory.path(), 5, {.background = true, .retention = {.keep_last = 2, .keep_every_steps = 3}});
    for (std::int64_t step = 1; step <= 6; ++step) {
      // In turn: waited for, and noticed by the votes.
      s.saver.start(s.ctx, step, test::some_meta());
      EXPECT_EQ((step % 2 == 0 ? s.saver.wait() : s.step_until_saved()).step, step);
    }
  });
  EXPECT_EQ(names_in(directory.path()), (Names{"step-00000003", "step-00000005", "step-00000006"}));
  EXPECT_EQ(fs::read_symlink(directory.path() / "latest"), "step-00000006");
  EXPECT_EQ(test::verified(directory.path() / "latest").step, 6);
}

TEST(CheckpointSaver, NothingIsInPlaceBeforeAllRanksHaveSaidThatTheyFinished) {
  const TemporaryDirectory directory;
  save_model(directory.path(), 1, 5);
  test::run_ranks(2, [&](Communicator& comm) {
    Saver s(comm, directory.path(), 6);
    s.saver.start(s.ctx, 2, test::some_meta());
    while (!s.saver.finished()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    comm.barrier();  // both shards are on the disk
    if (comm.rank() == 0) {
      EXPECT_EQ(names_in(directory.path()), (Names{"step-00000001", "step-00000002.tmp"}));
      EXPECT_EQ(test::latest_in(directory.path())->manifest.step, 1);
    }
    comm.barrier();
    s.saver.wait();
  });
  EXPECT_EQ(test::latest_in(directory.path())->manifest.step, 2);
}

TEST(CheckpointSaver, AFailureOnOneRankIsThrownOnAllAndTheNextSaveSucceeds) {
  const TemporaryDirectory directory;
  save_model(directory.path(), 1, 5);
  std::ofstream(directory.path() / "file") << "in the way";
  test::run_ranks(2, [&](Communicator& comm) {
    // Rank 1 cannot make its directory.
    Saver s(comm, comm.rank() == 0 ? directory.path() : directory.path() / "file" / "checkpoints", 6);
    s.saver.start(s.ctx, 2, test::some_meta());
    const std::string text = io_error_of([&] { s.step_until_saved(); });
    EXPECT_NE(text.find("rank 1: cannot make the directory"), std::string::npos) << text;
    EXPECT_NE(text.find("file/checkpoints"), std::string::npos) << text;
    EXPECT_FALSE(s.saver.running());
    EXPECT_EQ(names_in(directory.path()), (Names{"file", "step-00000001"}));
    Saver next(comm, directory.path(), 6);
    next.saver.start(next.ctx, 2, test::some_meta());
    next.saver.wait();
  });
  EXPECT_EQ(test::latest_in(directory.path())->manifest.step, 2);
}

TEST(CheckpointSaver, AFailedCommitIsThrownOnAll) {
  const TemporaryDirectory directory;
  save_model(directory.path(), 1, 5);
  test::run_ranks(2, [&](Communicator& comm) {
    Saver s(comm, directory.path(), 6);
    s.saver.start(s.ctx, 2, test::some_meta());
    while (!s.saver.finished()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    comm.barrier();
    if (comm.rank() == 0) fs::create_directories(directory.path() / "step-00000002.tmp" / "manifest.json.tmp");
    comm.barrier();
    const std::string text = io_error_of([&] { s.step_until_saved(); });
    EXPECT_NE(text.find("cannot create"), std::string::npos) << text;
    EXPECT_NE(text.find("manifest.json.tmp"), std::string::npos) << text;
  });
  EXPECT_EQ(names_in(directory.path()), Names{"step-00000001"});
  EXPECT_EQ(test::latest_in(directory.path())->manifest.step, 1);
}

TEST(CheckpointSaver, ASaverThatIsDestroyedMeanwhileLeavesNothingThatLoads) {
  const TemporaryDirectory directory;
  save_model(directory.path(), 1, 5);
  test::run_ranks(2, [&](Communicator& comm) {
    Saver s(comm, directory.path(), 6);
    s.saver.start(s.ctx, 2, test::some_meta());
  });
  EXPECT_EQ(names_in(directory.path()), (Names{"step-00000001", "step-00000002.tmp"}));
  EXPECT_EQ(test::latest_in(directory.path())->manifest.step, 1);
  save_model(directory.path(), 3, 6);
  EXPECT_EQ(names_in(directory.path()), (Names{"step-00000001", "step-00000003"}));
}

TEST(CheckpointSaver, SavesDoNotOverlap) {
  const TemporaryDirectory directory;
  const auto comm = make_self_communicator();
  Saver s(*comm, directory.path(), 6);
  s.saver.start(s.ctx, 2, test::some_meta());
  EXPECT_THROW(s.saver.start(s.ctx, 3, test::some_meta()), Error);
  EXPECT_THROW(s.saver.save(3, test::some_meta()), Error);
  EXPECT_EQ(s.saver.wait().step, 2);
  EXPECT_THROW(s.saver.advance(), Error);
}

TEST(CheckpointSaver, CopiesWithoutAllocating) {
  const TemporaryDirectory directory;
  const auto comm = make_self_communicator();
  Saver s(*comm, directory.path(), 6);
  const std::int64_t before = memory_stats().allocated;
  reset_memory_peak();
  s.saver.start(s.ctx, 2, test::some_meta());
  EXPECT_EQ(memory_stats().allocated, before);
  s.saver.wait();
  EXPECT_EQ(memory_stats().allocated, before);
}

TEST(CheckpointIndex, IsWhatTheManifestSaysAndStaysSoWhenTheDirectoryIsMoved) {
  for (const int ranks : {1, 3}) {
    const TemporaryDirectory directory;
    const fs::path path = save_model(directory.path(), 1, 5, ranks);
    check_index(path, test::verified(path));
    const fs::path moved = directory.path() / "elsewhere";
    fs::rename(path, moved);
    check_index(moved, test::verified(moved));
  }
}

TEST(CheckpointIndex, AMissingSourceIsNoticed) {
  const TemporaryDirectory directory;
  const fs::path path = save_model(directory.path(), 1, 5, 3);
  const Manifest manifest = test::verified(path);
  fs::rename(path / "shard-00001-of-00003.h5", path / "gone");
  const std::string text = io_error_of([&] { check_index(path, manifest); });
  EXPECT_NE(text.find("shard-00001-of-00003.h5"), std::string::npos) << text;
}

// Array by array, the index of one checkpoint against the manifest of another cut of the same model.
TEST(CheckpointIndex, AnotherCutIsNoticed) {
  const TemporaryDirectory one, two;
  const fs::path path = save_model(one.path(), 1, 5, 2), other = save_model(two.path(), 1, 5, 3);
  fs::copy(other / "index.h5", path / "index.h5", fs::copy_options::overwrite_existing);
  const std::string text = io_error_of([&] { check_index(path, read_manifest(path)); });
  EXPECT_NE(text.find("index.h5"), std::string::npos) << text;
}

TEST(CheckpointLatest, MovesWithEverySaveAndIsNeverMissing) {
  const TemporaryDirectory directory;
  std::atomic<bool> done = false;
  save_model(directory.path(), 1, 5);
  std::thread watcher([&] {
    while (!done) EXPECT_TRUE(fs::exists(directory.path() / "latest" / "manifest.json"));
  });
  for (int step = 2; step < 8; ++step) {
    save_model(directory.path(), step, 5);
    EXPECT_EQ(fs::read_symlink(directory.path() / "latest"), fmt::format("step-{:08d}", step));
  }
  done = true;
  watcher.join();
}

TEST(CheckpointLatest, ADirectoryOfThatNameIsSetAside) {
  const TemporaryDirectory directory, copy;
  save_model(directory.path(), 1, 5);
  fs::copy(directory.path(), copy.path(), fs::copy_options::recursive);  // follows links
  ASSERT_TRUE(fs::is_directory(fs::symlink_status(copy.path() / "latest")));
  save_model(copy.path(), 2, 5);
  EXPECT_EQ(fs::read_symlink(copy.path() / "latest"), "step-00000002");
  EXPECT_EQ(test::verified(copy.path() / "latest.replaced").step, 1);
}

}  // namespace
}  // namespace emox
