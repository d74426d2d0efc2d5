// What loading costs: bytes read, and memory beyond the caller's.
#include <gtest/gtest.h>

#include <sstream>

#include "parallel/checkpoint/verify.h"
#include "runtime/core/idx.h"
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
  std::int64_t file_bytes_ = 0;  ///< the index included
};

// Whatever is wanted, by however many ranks: reading and verifying are one.
TEST_F(CheckpointCost, EveryFileIsReadOnce) {
  constexpr std::int64_t kSlack = 1 << 20;  // manifests
  const std::int64_t n = kRows * kColumns;
  for (const int ranks : {1, 3, 8}) {
    std::vector<Tensor> got;
    for (int r = 0; r < ranks; ++r) got.emplace_back(Device{}, DType::F32, Shape{kRows, kColumns});
    LoadReport report;
    const auto cost = [&](const std::function<std::vector<CheckpointPiece>(std::int64_t rank)>& wanted) {
      const std::int64_t before = process_number("io", "rchar");
      test::run_ranks(ranks, [&](Communicator& comm) {
        const LoadReport mine = load_checkpoint(comm, {path(), read_manifest_of(comm, path())}, wanted(comm.rank()));
        if (comm.rank() == 0) report = mine;
      });
      EXPECT_EQ(report.all_bytes, file_bytes_) << ranks;
      EXPECT_EQ(report.all_files, 3) << ranks;  // two shards and the index
      return process_number("io", "rchar") - before;
    };
    EXPECT_LE(cost([](std::int64_t) { return std::vector<CheckpointPiece>{}; }), file_bytes_ + kSlack) << ranks;
    for (const auto* tensor : {&x_, &y_}) {
      const std::string name = tensor == &x_ ? "x.weight" : "y.weight";
      const auto all = [&](std::int64_t rank) { return whole(name, got[idx(rank)]); };
      EXPECT_LE(cost([&](std::int64_t rank) { return std::vector{all(rank)}; }), file_bytes_ + kSlack) << ranks;
      for (const Tensor& t : got) EXPECT_TRUE(test::same_bits(t, *tensor)) << "all of it on every rank";
      // Windows that overlap.
      const auto window = [&](std::int64_t rank) { return part_of(all(rank), n / 2 - 131072 + rank, n / 2 + rank); };
      EXPECT_LE(cost([&](std::int64_t rank) { return std::vector{window(rank)}; }), file_bytes_ + kSlack) << ranks;
      for (int r = 0; r < ranks; ++r)
        EXPECT_TRUE(test::same_bits(window(r).view, part_of(whole(name, *tensor), n / 2 - 131072 + r, n / 2 + r).view));
    }
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
