// Pieces of arrays: whatever way they are cut for saving, any other way of cutting them loads the same bits.
#include <gtest/gtest.h>

#include <random>
#include <sstream>

#include "parallel/checkpoint/layout.h"
#include "parallel/checkpoint/shard.h"
#include "runtime/core/idx.h"
#include "tests/parallel/checkpoint_model.h"

namespace emox {
namespace {

using test::CheckpointModel;
using test::part_of;
using test::run_ranks;
using test::TemporaryDirectory;
using test::whole;
using Pieces = std::vector<CheckpointPiece>;

/// Random numbers that are the same with every standard library.
class Dice {
 public:
  explicit Dice(unsigned seed) : engine_(seed) {}
  /// In [0, n).
  std::int64_t below(std::int64_t n) { return static_cast<std::int64_t>(engine_() % static_cast<std::uint64_t>(n)); }

 private:
  std::mt19937_64 engine_;
};

/// Every element once: arrays that stay whole and arrays in up to nine parts, each given to some rank. The same on all
/// ranks, `mine` excepted.
Pieces exact_cut(const Pieces& arrays, int ranks, int mine, unsigned seed) {
  Dice dice(seed);
  Pieces pieces;
  for (const CheckpointPiece& array : arrays) {
    const std::int64_t parts = dice.below(3) == 0 ? 1 : 1 + dice.below(9);
    std::int64_t begin = 0;
    for (std::int64_t i = 0; i < parts && begin < array.end; ++i) {
      const std::int64_t end = i == parts - 1 ? array.end : begin + dice.below(array.end - begin + 1);
      if (dice.below(ranks) == mine) pieces.push_back(part_of(array, begin, end));
      begin = end;
    }
  }
  // Nobody has to give them in order.
  for (std::size_t i = pieces.size(); i > 1; --i)
    std::swap(pieces[i - 1], pieces[idx(dice.below(static_cast<std::int64_t>(i)))]);
  return pieces;
}

/// Any parts of any arrays, some twice, some by several ranks.
Pieces free_cut(const Pieces& arrays, unsigned seed) {
  Dice dice(seed);
  Pieces pieces;
  for (std::int64_t i = dice.below(40); i > 0; --i) {
    const CheckpointPiece& array = arrays[idx(dice.below(static_cast<std::int64_t>(arrays.size())))];
    const std::int64_t begin = dice.below(array.end + 1);
    pieces.push_back(part_of(array, begin, begin + dice.below(array.end - begin + 1)));
  }
  return pieces;
}

/// Pieces with memory of their own: a read beyond a piece's end cannot hide in its neighbour.
struct Copies {
  explicit Copies(const Pieces& from) : pieces(from) {
    for (CheckpointPiece& p : pieces) {
      memory.emplace_back(Device{}, p.view.dtype(), Shape{p.end - p.begin});
      if (p.view.bytes() != 0) std::memcpy(memory.back().view().raw(), p.view.raw(), p.view.bytes());
      p.view = memory.back();
    }
  }
  std::vector<Tensor> memory;
  Pieces pieces;
};

/// Loads into other memory and compares with the pieces' own.
void check_load(Communicator& comm, const std::filesystem::path& path, const Pieces& want) {
  const Copies got(want);
  for (const Tensor& t : got.memory)
    if (t.view().bytes() != 0) std::memset(t.view().raw(), 0xA5, t.view().bytes());
  load_checkpoint(comm, path, got.pieces);
  if (!test::same_bits(got.pieces, want)) throw std::runtime_error("loaded pieces differ from the saved ones");
}

TEST(CheckpointPieces, AnyCutLoadsWithAnyOther) {
  unsigned seed = 0;
  for (const int writers : {1, 2, 3, 4, 6}) {
    const TemporaryDirectory directory;
    std::filesystem::path path;
    run_ranks(writers, [&](Communicator& comm) {
      const CheckpointModel model(5);
      const Copies mine(exact_cut(model.pieces(), comm.size(), comm.rank(), 100 + static_cast<unsigned>(writers)));
      const auto saved = save_checkpoint(comm, directory.path(), 1, mine.pieces, {});
      if (comm.rank() == 0) path = saved;
    });
    for (const int readers : {1, 2, 3, 4, 6}) {
      ++seed;
      run_ranks(readers, [&](Communicator& comm) {
        const CheckpointModel model(5);
        const auto rank = static_cast<unsigned>(comm.rank());
        check_load(comm, path, exact_cut(model.pieces(), comm.size(), comm.rank(), seed));
        check_load(comm, path, free_cut(model.pieces(), 1000 * seed + rank));
        check_load(comm, path, rank % 2 == 0 ? model.pieces() : Pieces{});
      });
    }
  }
}

/// Two ranks: rank 0 gives an array whole, and the ends of another; rank 1 the rest of that and part of a third.
std::filesystem::path save_mixture(const std::filesystem::path& directory, const Tensor& a, const Tensor& b,
                                   const Tensor& c) {
  const CheckpointPiece wa = whole("x.a.weight", a), wb = whole("x.b.weight", b), wc = whole("x.c.bias", c);
  std::filesystem::path path;
  run_ranks(2, [&](Communicator& comm) {
    const Copies mine(comm.rank() == 0
                          ? Pieces{part_of(wb, 30, 40), part_of(wc, 0, 0), part_of(wb, 0, 4), wa, part_of(wb, 4, 7)}
                          : Pieces{part_of(wb, 7, 30), part_of(wc, 0, 3), part_of(wc, 3, 5)});
    const auto saved = save_checkpoint(comm, directory, 1, mine.pieces, {});
    if (comm.rank() == 0) path = saved;
  });
  return path;
}

TEST(CheckpointPieces, WholeArraysAndPartsLieInOneFile) {
  const TemporaryDirectory directory;
  const Tensor a = test::random_tensor({4, 3}, 1), b = test::random_tensor({8, 5}, 2), c = test::random_tensor({5}, 3);
  const auto path = save_mixture(directory.path(), a, b, c);
  const Manifest m = read_manifest(path);
  std::vector<std::string> entries;
  for (const ManifestTensor& t : m.tensors)
    entries.push_back(
        fmt::format("{} [{}, {}) of {} {}{}", t.name, t.begin, t.end, t.shape.str(), t.file.substr(0, 11), t.dataset));
  // Neighbours in one file are one dataset; b's first piece has the array's own path.
  EXPECT_EQ(entries, (std::vector<std::string>{
                         "x.a.weight [0, 12) of [4, 3] shard-00000/x/a/weight",
                         "x.b.weight [0, 7) of [8, 5] shard-00000/x/b/weight",
                         "x.b.weight [7, 30) of [8, 5] shard-00001/x/b/weight",
                         "x.b.weight [30, 40) of [8, 5] shard-00000/x/b/weight.from-30",
                         "x.c.bias [0, 5) of [5] shard-00001/x/c/bias",
                     }));
  run_ranks(3, [&](Communicator& comm) {
    check_load(comm, path, {whole("x.a.weight", a), whole("x.b.weight", b), whole("x.c.bias", c)});
    check_load(comm, path, {part_of(whole("x.b.weight", b), 5, 33), part_of(whole("x.a.weight", a), 5, 6)});
  });
}

TEST(CheckpointPieces, AFileAloneSaysWhatItsPartsAre) {
  if (test::run_command("h5dump --version").exit_code != 0) GTEST_SKIP() << "h5dump is not installed";
  const TemporaryDirectory directory;
  const Tensor a = test::random_tensor({4, 3}, 1), b = test::random_tensor({8, 5}, 2), c = test::random_tensor({5}, 3);
  const auto path = save_mixture(directory.path(), a, b, c);
  const auto dump = [&](const std::string& dataset) {
    const auto file = path / "shard-00000-of-00002.h5";
    std::istringstream lines(test::run_command(fmt::format("h5dump -A -y -d {} {}", dataset, file.string())).output);
    std::string text;
    for (std::string word; lines >> word;) text += word + " ";
    return text;
  };
  const std::string part = dump("/x/b/weight.from-30");
  EXPECT_NE(part.find("DATASPACE SIMPLE { ( 10 ) / ( 10 ) } ATTRIBUTE \"begin\""), std::string::npos) << part;
  for (const char* attribute :
       {"\"begin\" { DATATYPE H5T_STD_I64LE DATASPACE SCALAR DATA { 30 } }",
        "\"end\" { DATATYPE H5T_STD_I64LE DATASPACE SCALAR DATA { 40 } }",
        "\"shape\" { DATATYPE H5T_STD_I64LE DATASPACE SIMPLE { ( 2 ) / ( 2 ) } DATA { 8, 5 } }"})
    EXPECT_NE(part.find(attribute), std::string::npos) << part;
  const std::string all = dump("/x/a/weight");
  EXPECT_NE(all.find("DATASPACE SIMPLE { ( 4, 3 ) / ( 4, 3 ) }"), std::string::npos) << all;
  EXPECT_EQ(all.find("ATTRIBUTE"), std::string::npos) << all;
}

TEST(CheckpointPieces, BoxesAreTheElementsInOrder) {
  const Shape shape{2, 3, 4, 5};
  const std::array<std::int64_t, 4> stride{60, 20, 5, 1};
  for (std::int64_t begin = 0; begin <= 120; ++begin)
    for (std::int64_t end = begin; end <= 120; ++end) {
      const std::vector<Box> boxes = boxes_of(shape, begin, end);
      ASSERT_LE(boxes.size(), 7U);
      std::int64_t next = begin;
      for (const Box& b : boxes) {
        ASSERT_EQ(b.begin, next);
        for (std::int64_t i = 0; i < b.count[0]; ++i)
          for (std::int64_t j = 0; j < b.count[1]; ++j)
            for (std::int64_t k = 0; k < b.count[2]; ++k)
              for (std::int64_t l = 0; l < b.count[3]; ++l, ++next)
                ASSERT_EQ((b.start[0] + i) * stride[0] + (b.start[1] + j) * stride[1] + (b.start[2] + k) * stride[2] +
                              b.start[3] + l,
                          next)
                    << begin << " " << end;
        ASSERT_EQ(b.end, next);
      }
      ASSERT_EQ(next, end);
    }
  EXPECT_EQ(boxes_of({}, 0, 1).size(), 1U);
  EXPECT_EQ(boxes_of({7}, 2, 5).size(), 1U);
  EXPECT_EQ(boxes_of({0, 3}, 0, 0).size(), 0U);
}

TEST(CheckpointPieces, WhatIsNoPiece) {
  const Tensor x({}, DType::F32, {2, 2});
  const CheckpointPiece good = whole("a.weight", x);
  EXPECT_NO_THROW(check_piece(good));
  EXPECT_NO_THROW(check_piece(part_of(good, 1, 1)));
  const auto refused = [&](const auto& change) {
    CheckpointPiece p = good;
    change(p);
    EXPECT_THROW(check_piece(p), ShapeError) << p.name << " " << p.role << " " << p.begin << " " << p.end;
  };
  for (const char* name : {"", ".", "a..b", "a.", ".a", "a/b"}) refused([&](CheckpointPiece& p) { p.name = name; });
  refused([](CheckpointPiece& p) { p.name = std::string("a\0b", 3); });
  refused([](CheckpointPiece& p) { p.role = "momentum"; });
  refused([](CheckpointPiece& p) { p.begin = 1; });
  refused([](CheckpointPiece& p) { p.begin = 2, p.end = 6; });
  refused([](CheckpointPiece& p) { p.begin = -1, p.end = 3; });
  refused([](CheckpointPiece& p) { p.begin = 4, p.end = 0; });
  refused([](CheckpointPiece& p) { p.shape = {3}; });
  refused([](CheckpointPiece& p) { p.view = {nullptr, DType::F32, {4}}; });
  refused([](CheckpointPiece& p) { p.view = {p.view.raw(), DType::F32, {4}, {DeviceType::Cuda, 0}}; });
}

}  // namespace
}  // namespace emox
