// Two checkpoints compared array by array, and arrays exported to one file.
#include "parallel/checkpoint/inspect.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <mutex>

#include "parallel/checkpoint/hdf5_file.h"
#include "parallel/checkpoint/layout.h"
#include "parallel/checkpoint/open_files.h"
#include "parallel/checkpoint/verify.h"
#include "tests/parallel/checkpoint_model.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using test::CheckpointModel;
using test::io_error_of;
using test::run_ranks;
using test::tensor_of;
using test::whole;

/// Saves these arrays from so many ranks, each array cut into parts, one of them later than the others.
fs::path save_cut(const fs::path& directory, const std::vector<CheckpointPiece>& arrays, int ranks) {
  run_ranks(ranks, [&](Communicator& comm) {
    std::vector<CheckpointPiece> mine;
    for (const CheckpointPiece& p : arrays) {
      const std::int64_t begin = p.end * comm.rank() / ranks, end = p.end * (comm.rank() + 1) / ranks;
      if (begin < end) mine.push_back(test::part_of(p, begin, end));
    }
    save_checkpoint(comm, directory, 1, mine, test::some_meta());
  });
  return directory / "step-00000001";
}

/// On so many ranks, all of which must agree.
CheckpointDifference compared(const fs::path& a, const fs::path& b, int ranks) {
  CheckpointDifference first;
  std::mutex mutex;
  bool set = false;
  run_ranks(ranks, [&](Communicator& comm) {
    const Manifest x = read_manifest(a), y = read_manifest(b);
    const auto arrays_a = arrays_of(x), arrays_b = arrays_of(y);
    verify_files(comm, a, x, files_of(arrays_a));
    verify_files(comm, b, y, files_of(arrays_b));
    const CheckpointDifference got = compare_checkpoints(comm, {a, arrays_a}, {b, arrays_b});
    const std::lock_guard lock(mutex);
    if (!std::exchange(set, true)) first = got;
    EXPECT_EQ(got.equal(), first.equal());
    ASSERT_EQ(got.arrays.size(), first.arrays.size());
    for (std::size_t i = 0; i < got.arrays.size(); ++i) EXPECT_EQ(got.arrays[i].different, first.arrays[i].different);
  });
  return first;
}

std::vector<ArrayDifference> unequal(const CheckpointDifference& d) {
  std::vector<ArrayDifference> list;
  for (const ArrayDifference& a : d.arrays)
    if (!a.equal()) list.push_back(a);
  return list;
}

class Compare : public ::testing::Test {
 protected:
  fs::path save(const std::string& name, const std::vector<CheckpointPiece>& arrays, int ranks = 1) const {
    return save_cut(directory_.path() / name, arrays, ranks);
  }
  test::TemporaryDirectory directory_;
};

TEST_F(Compare, OtherCutsAreNoDifference) {
  const CheckpointModel model(4);
  const fs::path a = save("a", model.pieces()), b = save("b", model.pieces(), 3), c = save("c", model.pieces(), 2);
  for (const int ranks : {1, 3})
    for (const auto& [x, y] : {std::pair(a, b), std::pair(b, c), std::pair(c, a), std::pair(b, b)}) {
      const CheckpointDifference d = compared(x, y, ranks);
      EXPECT_TRUE(d.equal());
      EXPECT_EQ(d.arrays.size(), model.pieces().size());
    }
}

TEST_F(Compare, OneChangedElementIsFoundWithItsValues) {
  const CheckpointModel model(4), changed(4);
  const std::string name = "model.layers.1.mlp.experts.2.up_proj.weight";
  float before = 0;
  for (const CheckpointPiece& p : changed.pieces())
    if (p.name == name && p.role == "weight") before = std::exchange(p.view.data<float>()[17], 2.5F);
  const fs::path a = save("a", model.pieces(), 2), b = save("b", changed.pieces(), 3);
  for (const int ranks : {1, 3}) {
    const auto list = unequal(compared(a, b, ranks));
    ASSERT_EQ(list.size(), 1U);
    EXPECT_EQ(list[0].name, name);
    EXPECT_EQ(list[0].role, "weight");
    EXPECT_EQ(list[0].different, 1);
    EXPECT_EQ(list[0].worst, 17);
    EXPECT_EQ(list[0].a, before);
    EXPECT_EQ(list[0].b, 2.5);
    EXPECT_EQ(list[0].largest, std::abs(static_cast<double>(before) - 2.5));
    double squares = 0;
    for (const CheckpointPiece& p : model.pieces())
      if (p.name == name && p.role == "weight")
        for (const float x : test::values_of<float>(p.view)) squares += static_cast<double>(x) * x;
    EXPECT_NEAR(list[0].relative(), list[0].largest / std::sqrt(squares), 1e-12);
  }
}

TEST_F(Compare, NaNsAndSignsOfZero) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  const Tensor a = tensor_of<float>({nan, 1, 0, inf, 7}, {5});
  const Tensor same = tensor_of<float>({nan, 1, 0, inf, 7}, {5});
  const Tensor b = tensor_of<float>({nan, nan, -0.0F, inf, 100}, {5});
  const Tensor zero = tensor_of<float>({0, 2}, {2}), minus = tensor_of<float>({-0.0F, 2}, {2});
  const Tensor big = tensor_of<float>({0, 0}, {2});
  const fs::path x = save("x", {whole("m", a), whole("n", a), whole("o", zero), whole("p", big)});
  const fs::path y = save("y", {whole("m", same), whole("n", b), whole("o", minus), whole("p", zero)}, 2);
  for (const int ranks : {1, 3}) {
    const auto list = unequal(compared(x, y, ranks));
    ASSERT_EQ(list.size(), 3U);  // equal bits are equal, NaN too
    EXPECT_EQ(list[0].name, "n");
    EXPECT_EQ(list[0].different, 3);
    EXPECT_EQ(list[0].unordered, 1);
    EXPECT_TRUE(std::isnan(list[0].largest));  // not hidden by the 93 behind it
    EXPECT_EQ(list[0].worst, 1);
    EXPECT_EQ(list[0].a, 1);
    EXPECT_TRUE(std::isnan(list[0].b));
    EXPECT_TRUE(std::isnan(list[0].relative()));
    EXPECT_EQ(list[1].name, "o");
    EXPECT_EQ(list[1].different, 1);
    EXPECT_EQ(list[1].largest, 0);
    EXPECT_EQ(list[1].worst, 0);
    EXPECT_EQ(list[1].relative(), 0);
    EXPECT_EQ(list[2].name, "p");
    EXPECT_EQ(list[2].worst, 1);
    EXPECT_EQ(list[2].relative(), std::numeric_limits<double>::infinity());
  }
}

TEST_F(Compare, ArraysThatOnlyOneHas) {
  const Tensor two = tensor_of<float>({1, 2}, {2}), column = tensor_of<float>({1, 2}, {2, 1});
  const Tensor whole_numbers = tensor_of<std::int32_t>({1, 2}, {2});
  const fs::path a = save("a", {whole("left", two), whole("shape", two), whole("type", two), whole("both", two)});
  const fs::path b =
      save("b", {whole("right", two), whole("shape", column), whole("type", whole_numbers), whole("both", two)});
  const CheckpointDifference d = compared(a, b, 2);
  EXPECT_FALSE(d.equal());
  EXPECT_EQ(d.arrays.size(), 1U);
  EXPECT_TRUE(unequal(d).empty());
  ASSERT_EQ(d.mismatches.size(), 4U);
  const auto expect = [&](std::size_t i, const char* title, const char* in_a, const char* in_b) {
    EXPECT_EQ(d.mismatches[i].title, title);
    EXPECT_EQ(d.mismatches[i].a, in_a);
    EXPECT_EQ(d.mismatches[i].b, in_b);
  };
  expect(0, "left", "f32 [2]", "");
  expect(1, "shape", "f32 [2]", "f32 [2, 1]");
  expect(2, "type", "f32 [2]", "i32 [2]");
  expect(3, "right", "", "f32 [2]");
}

/// The largest of three differences, each in another block and another piece.
TEST_F(Compare, ArraysLargerThanABlock) {
  const std::int64_t n = kBlockBytes / 4 + 777;
  const Tensor a({}, DType::F32, {n}), b({}, DType::F32, {n});
  b.view().data<float>()[5] = 1, b.view().data<float>()[n / 2 + 9] = -3, b.view().data<float>()[n - 1] = 2;
  a.view().data<float>()[0] = b.view().data<float>()[0] = 4;
  const fs::path x = save("x", {whole("v", a)}), y = save("y", {whole("v", b)}, 2);
  for (const int ranks : {1, 3}) {
    const auto list = unequal(compared(x, y, ranks));
    ASSERT_EQ(list.size(), 1U);
    EXPECT_EQ(list[0].different, 3);
    EXPECT_EQ(list[0].largest, 3);
    EXPECT_EQ(list[0].worst, n / 2 + 9);
    EXPECT_EQ(list[0].relative(), std::sqrt(14.0) / 4);
  }
}

class Export : public Compare {
 protected:
  /// Reads an exported array with the reader that loading uses.
  static Tensor read(const fs::path& file, const SavedArray& a) {
    Tensor t({}, a.dtype, a.shape);
    const ManifestTensor entry{.name = a.name,
                               .role = a.role,
                               .dtype = a.dtype,
                               .shape = a.shape,
                               .begin = 0,
                               .end = a.elements(),
                               .file = {},
                               .dataset = dataset_path(a.name, a.role),
                               .checksum = {}};
    const ArraySlice slice{0, t.view()};
    Hdf5File::open(file).read(entry, std::span(&slice, 1));
    return t;
  }
  ExportedFile write(const fs::path& checkpoint, const fs::path& output, int ranks,
                     const ExportNotes& notes = {{"step", "1"}}) const {
    ExportedFile result;
    run_ranks(ranks, [&](Communicator& comm) {
      const Manifest manifest = read_manifest(checkpoint);
      const auto arrays = arrays_of(manifest);
      verify_files(comm, checkpoint, manifest, files_of(arrays));
      const ExportedFile done = export_arrays(comm, checkpoint, arrays, output, notes);
      if (comm.rank() == 0) result = done;
    });
    return result;
  }
};

TEST_F(Export, HoldsTheSameBytesWhole) {
  const CheckpointModel model(8);
  auto pieces = model.pieces();
  const Tensor large = test::random_tensor({kBlockBytes / 1024 + 3, 257}, 9);
  pieces.push_back(whole("large.weight", large));
  for (const int saved_by : {1, 3}) {
    const fs::path checkpoint = save(fmt::format("from-{}", saved_by), pieces, saved_by);
    const fs::path output = directory_.path() / fmt::format("{}.h5", saved_by);
    const ExportedFile done = write(checkpoint, output, saved_by);
    EXPECT_EQ(done.arrays, static_cast<std::int64_t>(pieces.size()));
    EXPECT_EQ(done.bytes, static_cast<std::int64_t>(fs::file_size(output)));
    const Manifest manifest = read_manifest(checkpoint);
    for (const SavedArray& a : arrays_of(manifest))
      for (const CheckpointPiece& p : pieces)
        if (p.name == a.name && p.role == a.role) {
          EXPECT_TRUE(test::same_bits(read(output, a), p.view)) << a.title();
        }
  }
  // However a checkpoint is cut, the file is the same.
  EXPECT_EQ(test::names_in(directory_.path()), (std::vector<std::string>{"1.h5", "3.h5", "from-1", "from-3"}));
  const auto text = [&](const char* name) { return fs::file_size(directory_.path() / name); };
  EXPECT_EQ(text("1.h5"), text("3.h5"));
}

TEST_F(Export, LongNotesAndReplacing) {
  const Tensor two = tensor_of<float>({1, 2}, {2});
  const fs::path checkpoint = save("a", {whole("x", two)}), output = directory_.path() / "out.h5";
  write(checkpoint, output, 1);
  const auto small = fs::file_size(output);
  write(checkpoint, output, 2, {{"recipe", std::string(300000, 'r')}, {"empty", ""}});
  EXPECT_GT(fs::file_size(output), small + 299000);
  EXPECT_EQ(test::names_in(directory_.path()), (std::vector<std::string>{"a", "out.h5"}));
}

TEST_F(Export, AFailureLeavesNothing) {
  const Tensor two = tensor_of<float>({1, 2}, {2});
  const fs::path checkpoint = save("a", {whole("x", two)});
  const std::string text = io_error_of([&] { write(checkpoint, directory_.path() / "none" / "out.h5", 2); });
  EXPECT_NE(text.find("out.h5.tmp"), std::string::npos) << text;
  EXPECT_NE(text.find("No such file"), std::string::npos) << text;
  fs::create_directory(directory_.path() / "folder");
  fs::create_directory(directory_.path() / "folder" / "inside");
  io_error_of([&] { write(checkpoint, directory_.path() / "folder", 2); });
  EXPECT_EQ(test::names_in(directory_.path()), (std::vector<std::string>{"a", "folder"}));
}

}  // namespace
}  // namespace emox
