// What loading costs: bytes read, and memory beyond the caller's.
#include <gtest/gtest.h>

#include <sstream>

#include "tests/parallel/checkpoint_model.h"

namespace emox {
namespace {

using test::part_of;
using test::whole;

/// A number of this process from a file of "name: number" lines below /proc/self.
std::int64_t process_number(const std::string& file, const std::string& name) {
  std::ifstream in("/proc/self/" + file);
  for (std::string line; std::getline(in, line);)
    if (line.starts_with(name + ":")) return std::stoll(line.substr(name.size() + 1));
  ADD_FAILURE() << "no " << name << " in /proc/self/" << file;
  return 0;
}

class CheckpointCost : public ::testing::Test {
 protected:
  static constexpr std::int64_t kRows = 8192, kColumns = 1024;  // 32 MiB

  void SetUp() override {
    test::run_ranks(2, [&](Communicator& comm) {
      const CheckpointPiece x = whole("x.weight", x_), y = whole("y.weight", y_);
      const std::int64_t middle = x.end / 2 + 77;
      const std::vector<CheckpointPiece> mine = {comm.rank() == 0 ? part_of(x, 0, middle) : part_of(x, middle, x.end),
                                                 comm.rank() == 0 ? y : part_of(y, 0, 0)};
      save_checkpoint(comm, directory_.path(), 1, mine, {});
    });
    for (const ManifestFile& f : read_manifest(path()).files) file_bytes_ += f.bytes;
  }

  std::filesystem::path path() const { return directory_.path() / "step-00000001"; }

  test::TemporaryDirectory directory_;
  Tensor x_ = test::random_tensor({kRows, kColumns}, 1), y_ = test::random_tensor({kRows, kColumns}, 2);
  std::int64_t file_bytes_ = 0;
};

TEST_F(CheckpointCost, EveryFileIsVerifiedOnceAndOnlyWhatIsWantedIsReadAgain) {
  constexpr std::int64_t kSlack = 4 << 20;  // manifests, and what HDF5 reads about its own structure
  for (const int ranks : {1, 3}) {
    const Tensor got({}, DType::F32, {kRows, kColumns});
    const auto cost = [&](const std::function<std::vector<CheckpointPiece>(std::int64_t rank)>& wanted) {
      const std::int64_t before = process_number("io", "rchar");
      test::run_ranks(ranks, [&](Communicator& comm) { load_checkpoint(comm, path(), wanted(comm.rank())); });
      return process_number("io", "rchar") - before;
    };
    const std::int64_t nothing = cost([](std::int64_t) { return std::vector<CheckpointPiece>{}; });
    EXPECT_GE(nothing, file_bytes_);
    EXPECT_LE(nothing, file_bytes_ + kSlack) << ranks;
    // Three times 1 MiB of an array that is whole in its file, and over a border of one that is in two.
    for (const auto* tensor : {&x_, &y_}) {
      const std::string name = tensor == &x_ ? "x.weight" : "y.weight";
      const std::int64_t n = kRows * kColumns, begin = n / 2 - 131072, end = n / 2 + 131072;
      // Windows that overlap, so each rank has memory of its own; rank 0's is looked at.
      const Tensor others[] = {Tensor({}, DType::F32, {kRows, kColumns}), Tensor({}, DType::F32, {kRows, kColumns})};
      const std::int64_t part = cost([&](std::int64_t rank) {
        const Tensor& mine = rank == 0 ? got : others[rank - 1];
        return std::vector{part_of(whole(name, mine), begin + rank, end + rank)};
      });
      EXPECT_LE(part, file_bytes_ + ranks * (end - begin) * 4 + kSlack) << ranks << " " << name;
      EXPECT_TRUE(
          test::same_bits(part_of(whole(name, got), begin, end).view, part_of(whole(name, *tensor), begin, end).view));
    }
    const std::int64_t thirds = cost([&](std::int64_t rank) {
      const CheckpointPiece x = whole("x.weight", got);
      return std::vector{part_of(x, x.end * rank / ranks, x.end * (rank + 1) / ranks)};
    });
    EXPECT_LE(thirds, file_bytes_ + static_cast<std::int64_t>(x_.view().bytes()) + kSlack) << ranks;
    EXPECT_TRUE(test::same_bits(got, x_));
  }
}

TEST_F(CheckpointCost, LoadingNeedsLittleMemoryBesideTheCallers) {
  const auto comm = make_self_communicator();
  const Tensor x({}, DType::F32, {kRows, kColumns}), y({}, DType::F32, {kRows, kColumns});
  // One cut as it was saved, one across it.
  const CheckpointPiece wx = whole("x.weight", x);
  const std::vector<CheckpointPiece> wanted = {part_of(wx, 0, 99), part_of(wx, 99, wx.end), whole("y.weight", y)};
  load_checkpoint(*comm, path(), std::span(wanted).first(1));  // what the libraries allocate once
  std::ofstream("/proc/self/clear_refs") << 5;                 // the peak starts anew
  const std::int64_t before = process_number("status", "VmRSS");
  load_checkpoint(*comm, path(), wanted);
  // 64 MiB were loaded.
  EXPECT_LE(process_number("status", "VmHWM") - before, 16 << 10);
  EXPECT_TRUE(test::same_bits(x, x_));
  EXPECT_TRUE(test::same_bits(y, y_));
}

}  // namespace
}  // namespace emox
