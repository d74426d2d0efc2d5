// Saves that fail, crashes' leftovers, and what pruning keeps.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>

#include "parallel/checkpoint/inspect.h"
#include "parallel/checkpoint/saver.h"
#include "runtime/core/idx.h"
#include "tests/parallel/checkpoint_model.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using test::CheckpointModel;
using test::io_error_of;
using test::names_in;
using test::save_model;
using test::TemporaryDirectory;
using Names = std::vector<std::string>;

/// No file of this process may grow beyond `bytes` (write fails with EFBIG): a full disk that needs no privileges.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limit = before_;
    limit.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  void (*handler_)(int);
  rlimit before_{};
};

/// Two ranks save a tensor each.
std::vector<std::string> failed_save(const fs::path& directory, std::int64_t rows0, std::int64_t rows1) {
  std::vector<std::string> texts(2);
  test::run_ranks(2, [&](Communicator& comm) {
    const Tensor a = test::random_tensor({rows0, 1024}, 1), b = test::random_tensor({rows1, 1024}, 2);
    const CheckpointPiece mine = comm.rank() == 0 ? test::whole("a.weight", a) : test::whole("b.weight", b);
    texts[idx(comm.rank())] = io_error_of([&] { save_checkpoint(comm, directory, 2, std::span(&mine, 1), {}); });
    comm.barrier();
  });
  return texts;
}

TEST(CheckpointFailure, AFullDiskOnOneRankFailsAllAndLeavesTheEarlierCheckpoint) {
  const TemporaryDirectory directory;
  save_model(directory.path(), 1, 5, 2);
  {
    const FileSizeLimit limit(256 << 10);
    for (const std::string& text : failed_save(directory.path(), 400, 8)) {
      EXPECT_NE(text.find("rank 0: "), std::string::npos) << text;
      EXPECT_NE(text.find("shard-00000-of-00002.h5: File too large"), std::string::npos) << text;
    }
    EXPECT_EQ(names_in(directory.path()), Names{"step-00000001"});
  }
  EXPECT_EQ(test::latest_in(directory.path())->manifest.step, 1);
  // With room again the same process saves.
  save_model(directory.path(), 2, 6, 2);
  EXPECT_EQ(test::latest_in(directory.path())->manifest.step, 2);
}

TEST(CheckpointFailure, NoRoomForAnything) {
  const TemporaryDirectory directory;
  save_model(directory.path(), 1, 5);
  {
    const FileSizeLimit limit(1);
    for (const std::string& text : failed_save(directory.path(), 8, 8))
      EXPECT_NE(text.find("File too large"), std::string::npos) << text;
    EXPECT_EQ(names_in(directory.path()), Names{"step-00000001"});
  }
  EXPECT_EQ(test::latest_in(directory.path())->manifest.step, 1);
}

TEST(CheckpointFailure, NoRoomInTheBackground) {
  const TemporaryDirectory directory;
  save_model(directory.path(), 1, 5, 2);
  {
    const FileSizeLimit limit(1 << 10);
    test::run_ranks(2, [&](Communicator& comm) {
      const CheckpointModel model(6);
      const auto mine = test::divide_among_ranks(model.pieces(), comm.rank(), comm.size());
      CheckpointSaver saver(comm, directory.path(), mine, {.background = true, .retention = {.keep_last = 1}});
      Context ctx;
      saver.start(ctx, 2, test::some_meta());
      const std::string text = io_error_of([&] { saver.wait(); });
      EXPECT_NE(text.find("step-00000002.tmp/shard-00000-of-00002.h5: File too large"), std::string::npos) << text;
      EXPECT_NE(text.find("ulimit -f"), std::string::npos) << text;
    });
    EXPECT_EQ(names_in(directory.path()), Names{"step-00000001"});
  }
  EXPECT_EQ(test::latest_in(directory.path())->manifest.step, 1);
}

TEST(CheckpointFailure, NoRoomForAnExport) {
  const TemporaryDirectory directory;
  const fs::path path = save_model(directory.path() / "run", 1, 5, 2), output = directory.path() / "out.h5";
  std::ofstream(output) << "an earlier one";
  {
    const FileSizeLimit limit(1 << 10);
    test::run_ranks(2, [&](Communicator& comm) {
      const Manifest manifest = read_manifest(path);
      const std::string text = io_error_of([&] { export_arrays(comm, path, arrays_of(manifest), output, {}); });
      EXPECT_NE(text.find("out.h5.tmp: File too large"), std::string::npos) << text;
    });
  }
  EXPECT_EQ(names_in(directory.path()), (Names{"out.h5", "run"}));
  EXPECT_EQ(fs::file_size(output), 14U);
}

TEST(CheckpointFailure, NoRoomForTheManifest) {
  const TemporaryDirectory directory;
  save_model(directory.path(), 1, 5);
  const auto comm = make_self_communicator();
  const Tensor x({}, DType::F32, {4});
  CheckpointMeta meta;
  meta.recipe = std::string(1 << 20, '#');
  {
    const FileSizeLimit limit(256 << 10);
    const std::string text = io_error_of(
        [&] { save_checkpoint(*comm, directory.path(), 2, std::vector{test::whole("x.weight", x)}, meta); });
    EXPECT_NE(text.find("manifest.json: File too large"), std::string::npos) << text;
  }
  EXPECT_EQ(names_in(directory.path()), Names{"step-00000001"});
}

TEST(CheckpointFailure, ADirectoryThatCannotBeMade) {
  const TemporaryDirectory directory;
  std::ofstream(directory.path() / "file") << "in the way";
  for (const std::string& text : failed_save(directory.path() / "file" / "checkpoints", 1, 1))
    EXPECT_NE(text.find("rank 0: "), std::string::npos) << text;
}

TEST(CheckpointFailure, ATextThatIsNotUtf8) {
  const TemporaryDirectory directory;
  const auto comm = make_self_communicator();
  const Tensor x({}, DType::F32, {4});
  CheckpointMeta meta;
  meta.recipe = "\xFF";
  EXPECT_THROW(save_checkpoint(*comm, directory.path(), 2, std::vector{test::whole("x.weight", x)}, meta), IoError);
  EXPECT_TRUE(fs::is_empty(directory.path()));
}

TEST(CheckpointLeftovers, AreRemovedByTheNextSaveAndNeverFound) {
  const TemporaryDirectory directory;
  const auto path = save_model(directory.path(), 1, 5);
  for (const char* name : {"step-00000002.tmp", "step-00000001.tmp-old", "step-00000000.tmp-removed"})
    fs::copy(path, directory.path() / name);
  fs::create_directory(directory.path() / "notes.tmp");
  EXPECT_EQ(test::latest_in(directory.path())->path, path);
  save_model(directory.path(), 2, 6);
  EXPECT_EQ(names_in(directory.path()), (Names{"notes.tmp", "step-00000001", "step-00000002"}));
  fs::create_directory(directory.path() / "step-00000003.tmp");
  remove_unfinished_checkpoints(directory.path());
  EXPECT_EQ(names_in(directory.path()), (Names{"notes.tmp", "step-00000001", "step-00000002"}));
}

class CheckpointPrune : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const int step : {10, 20, 30, 40, 50}) save_model(root(), step, 1);
  }
  fs::path root() const { return directory_.path(); }
  fs::path at(int step) const { return root() / fmt::format("step-{:08d}", step); }
  void damage(int step) const { test::flip_byte(at(step) / "shard-00000-of-00001.h5", 40); }
  std::vector<int> left() const {
    std::vector<int> steps;
    for (const std::string& n : names_in(root())) steps.push_back(std::stoi(n.substr(5)));
    return steps;
  }
  TemporaryDirectory directory_;
};

TEST_F(CheckpointPrune, KeepsTheLast) {
  EXPECT_EQ(prune_checkpoints(root(), 2, 0), (std::vector<fs::path>{at(30), at(20), at(10)}));
  EXPECT_EQ(left(), (std::vector<int>{40, 50}));
  EXPECT_TRUE(prune_checkpoints(root(), 2, 0).empty());
}

TEST_F(CheckpointPrune, KeepsMultiples) {
  prune_checkpoints(root(), 1, 20);
  EXPECT_EQ(left(), (std::vector<int>{20, 40, 50}));
}

TEST_F(CheckpointPrune, NeverRemovesTheNewestGoodOne) {
  damage(50);
  damage(40);
  prune_checkpoints(root(), 1, 0);
  EXPECT_EQ(left(), (std::vector<int>{30, 40, 50}));
  prune_checkpoints(root(), 0, 0);
  EXPECT_EQ(left(), (std::vector<int>{30, 40, 50}));
  EXPECT_EQ(test::latest_in(root())->path, at(30));
}

TEST_F(CheckpointPrune, AnIncompleteOneDoesNotCountAmongTheLast) {
  fs::remove(at(50) / "manifest.json");
  prune_checkpoints(root(), 2, 0);
  EXPECT_EQ(left(), (std::vector<int>{30, 40, 50}));
}

TEST_F(CheckpointPrune, KeepsAllWhenThereAreFew) {
  EXPECT_TRUE(prune_checkpoints(root(), 9, 0).empty());
  EXPECT_EQ(left().size(), 5U);
}

}  // namespace
}  // namespace emox
