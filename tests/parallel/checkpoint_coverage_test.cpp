// Pieces that do not make a checkpoint are refused before a byte is written, by name, elements and ranks.
#include <gtest/gtest.h>

#include <ctime>

#include "parallel/checkpoint/layout.h"
#include "parallel/checkpoint/manifest.h"
#include "runtime/core/idx.h"
#include "tests/parallel/checkpoint_model.h"

namespace emox {
namespace {

using test::part_of;
using test::whole;
using Pieces = std::vector<CheckpointPiece>;

class CheckpointCoverage : public ::testing::Test {
 protected:
  /// One list a rank. All ranks must fail with this text, and leave nothing.
  void expect_refused(const std::vector<Pieces>& ranks, const std::string& text) const {
    test::run_ranks(static_cast<int>(ranks.size()), [&](Communicator& comm) {
      const std::string got =
          test::io_error_of([&] { save_checkpoint(comm, directory_.path(), 1, ranks[idx(comm.rank())], {}); });
      EXPECT_NE(got.find(text), std::string::npos) << got;
    });
    EXPECT_TRUE(std::filesystem::is_empty(directory_.path()));
  }

  test::TemporaryDirectory directory_;
  Tensor memory_ = Tensor({}, DType::F32, {8, 5});
  CheckpointPiece x_ = whole("x.weight", memory_);
};

TEST_F(CheckpointCoverage, AGap) {
  expect_refused(
      {{part_of(x_, 0, 10)}, {}, {part_of(x_, 13, 40)}},
      "x.weight (weight) [8, 5]: elements [10, 13) are nowhere; rank 0 ends before them, rank 2 begins after");
  expect_refused({{}, {part_of(x_, 1, 40)}},
                 "x.weight (weight) [8, 5]: elements [0, 1) are nowhere; rank 1 begins after them");
  expect_refused({{part_of(x_, 0, 20)}, {part_of(x_, 20, 39)}},
                 "x.weight (weight) [8, 5]: elements [39, 40) are nowhere; rank 1 ends before them");
  // The one who had to give the middle says that it is empty.
  expect_refused({{part_of(x_, 0, 20), part_of(x_, 21, 40)}, {part_of(x_, 20, 20)}},
                 "elements [20, 21) are nowhere; rank 0 ends before them, rank 0 begins after them");
}

TEST_F(CheckpointCoverage, AnOverlap) {
  expect_refused({{part_of(x_, 0, 21)}, {part_of(x_, 20, 40)}},
                 "x.weight (weight) [8, 5]: elements [20, 21) are on rank 0 and again on rank 1");
  expect_refused({{x_}, {part_of(x_, 7, 9)}}, "elements [7, 9) are on rank 0 and again on rank 1");
  expect_refused({{x_}, {}, {x_}}, "elements [0, 40) are on rank 0 and again on rank 2");
  expect_refused({{x_, x_}}, "elements [0, 40) are on rank 0 and again on rank 0");
  const CheckpointPiece empty = whole("e.weight", Tensor({}, DType::F32, {0, 3}));
  expect_refused({{x_, empty}, {empty}}, "e.weight (weight) [0, 3]: elements [0, 0) are on rank 0 and again on rank 1");
}

TEST_F(CheckpointCoverage, APieceOfAnotherArray) {
  const Tensor other({}, DType::F32, {5, 8});
  expect_refused({{part_of(x_, 0, 20)}, {part_of(whole("x.weight", other), 20, 40)}},
                 "x.weight (weight) is f32 [8, 5] on rank 0, f32 [5, 8] on rank 1");
  const Tensor wider({}, DType::F64, {8, 5});
  expect_refused({{part_of(x_, 0, 20)}, {part_of(whole("x.weight", wider), 20, 40)}},
                 "x.weight (weight) is f32 [8, 5] on rank 0, f64 [8, 5] on rank 1");
}

TEST_F(CheckpointCoverage, Moments) {
  const CheckpointPiece mean = whole("x.weight", memory_, "exp_avg"), square = whole("x.weight", memory_, "exp_avg_sq");
  expect_refused({{x_}, {mean}}, "x.weight has an exp_avg (rank 1) but no exp_avg_sq");
  expect_refused({{x_, square}}, "x.weight has an exp_avg_sq (rank 0) but no exp_avg");
  expect_refused({{square}, {mean}}, "x.weight has an exp_avg (rank 1) but no weight");
  const Tensor other({}, DType::F32, {40});
  expect_refused({{x_}, {whole("x.weight", other, "exp_avg"), square}},
                 "x.weight: its exp_avg is [40] on rank 1, the weight [8, 5] on rank 0");
  expect_refused({{x_}, {mean, whole("x.weight", other, "exp_avg_sq")}},
                 "x.weight: its exp_avg_sq is [40] on rank 1, the weight [8, 5] on rank 0");
  expect_refused({{x_, mean}, {part_of(square, 0, 39)}}, "x.weight (exp_avg_sq) [8, 5]: elements [39, 40) are nowhere");
}

TEST_F(CheckpointCoverage, TwoArraysInOnePlace) {
  Pieces pieces;
  test::add_whole(pieces, "x.weight", memory_, memory_, memory_);
  expect_refused({pieces, {whole("x.exp_avg", memory_)}},
                 "x.exp_avg (weight) and x.weight (exp_avg) have one place in a checkpoint, /x/exp_avg");
}

TEST_F(CheckpointCoverage, RanksInAnotherStep) {
  test::run_ranks(3, [&](Communicator& comm) {
    const std::string text = test::io_error_of([&] {
      save_checkpoint(comm, directory_.path(), comm.rank() == 2 ? 5 : 4, comm.rank() == 0 ? Pieces{x_} : Pieces{}, {});
    });
    EXPECT_NE(text.find("rank 2 saves step 5, rank 0 step 4"), std::string::npos) << text;
  });
  EXPECT_TRUE(std::filesystem::is_empty(directory_.path()));
}

TEST_F(CheckpointCoverage, APieceThatIsNone) {
  test::run_ranks(2, [&](Communicator& comm) {
    CheckpointPiece p = comm.rank() == 0 ? part_of(x_, 0, 20) : part_of(x_, 20, 40);
    if (comm.rank() == 1) p.end = 41;
    const std::string text =
        test::io_error_of([&] { save_checkpoint(comm, directory_.path(), 1, std::span(&p, 1), {}); });
    EXPECT_NE(text.find("rank 1: x.weight (weight): elements [20, 41) of [8, 5]"), std::string::npos) << text;
  });
  EXPECT_TRUE(std::filesystem::is_empty(directory_.path()));
}

TEST_F(CheckpointCoverage, APlacementThatIsNone) {
  const auto comm = make_self_communicator();
  CheckpointMeta meta;
  meta.placement = {{"expert_parallel", 2}, {"table", {{0, 1}, {2, 0}}}};
  const auto refusal = [&] {
    return test::io_error_of([&] { save_checkpoint(*comm, directory_.path(), 1, std::span(&x_, 1), meta); });
  };
  EXPECT_EQ(refusal(), "placement.table[1][0] is 2: not a whole number in [0, 1]");
  meta.placement = nullptr;
  meta.mesh = {{"expert_parallel", 2}};
  EXPECT_EQ(refusal(), "mesh has no \"data_parallel\"");
  EXPECT_TRUE(std::filesystem::is_empty(directory_.path()));
}

/// `n` pieces of arrays of 64 pieces each, the last ones first.
std::vector<ManifestTensor> many_pieces(std::int64_t n) {
  std::vector<ManifestTensor> pieces;
  for (std::int64_t i = n - 1; i >= 0; --i)
    pieces.push_back({fmt::format("model.layers.{}.weight", i / 64),
                      "weight",
                      DType::F32,
                      {64, 3},
                      i % 64 * 3,
                      i % 64 * 3 + 3,
                      shard_file_name(static_cast<int>(i % 64), 64),
                      "/x",
                      ""});
  return pieces;
}

TEST(CheckpointScale, CoverageOfManyPieces) {
  const std::vector<ManifestTensor> pieces = many_pieces(64 * 4000);
  const std::clock_t start = std::clock();
  check_coverage(pieces, [](const ManifestTensor& t) { return t.file; });
  // n log n takes some 0.3 s; comparing each of 256,000 pieces with each other takes minutes.
  EXPECT_LT(static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC, 10.0);
  std::vector<ManifestTensor> gap = pieces;
  gap.erase(gap.begin() + 100000);
  EXPECT_THROW(check_coverage(gap, [](const ManifestTensor& t) { return t.file; }), IoError);
}

TEST(CheckpointScale, TensOfThousandsOfPiecesComeBack) {
  const test::TemporaryDirectory directory;
  std::filesystem::path path;
  constexpr int kTensors = 110, kTimeout = 240;  // sanitizers
  constexpr std::int64_t kParts = 64, kElements = 64 * 33;
  const auto arrays_of_seed = [](std::vector<Tensor>& memory, bool filled) {
    Pieces arrays;
    for (int i = 0; i < kTensors; ++i) {
      const std::size_t first = memory.size();
      for (unsigned r = 0; r < 3; ++r)
        memory.push_back(filled ? test::random_tensor({64, 33}, 3 * static_cast<unsigned>(i) + r)
                                : Tensor({}, DType::F32, {64, 33}));
      test::add_whole(arrays, fmt::format("model.layers.{}.weight", i), memory[first], memory[first + 1],
                      memory[first + 2]);
    }
    return arrays;
  };
  std::vector<Tensor> memory;
  const Pieces arrays = arrays_of_seed(memory, true);
  test::run_ranks(
      4,
      [&](Communicator& comm) {
        Pieces mine;  // every fourth part: none adjoins another
        for (const CheckpointPiece& a : arrays)
          for (std::int64_t i = comm.rank(); i < kParts; i += 4)
            mine.push_back(part_of(a, kElements * i / kParts, kElements * (i + 1) / kParts));
        const auto saved = save_checkpoint(comm, directory.path(), 1, mine, {});
        if (comm.rank() == 0) path = saved;
      },
      kTimeout);
  EXPECT_EQ(read_manifest(path).tensors.size(), std::size_t{3} * kTensors * kParts);
  test::run_ranks(
      3,
      [&](Communicator& comm) {
        std::vector<Tensor> own;
        const Pieces got = arrays_of_seed(own, false);
        Pieces wanted;
        for (const CheckpointPiece& a : got)
          for (std::int64_t i = 0; i < 50; ++i)
            wanted.push_back(part_of(a, kElements * i / 50, kElements * (i + 1) / 50));
        load_checkpoint(comm, path, wanted);
        if (!test::same_bits(got, arrays)) throw std::runtime_error("loaded arrays differ");
      },
      kTimeout);
}

}  // namespace
}  // namespace emox
