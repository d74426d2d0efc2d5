#include "data/loader/source_files.h"

#include <sys/resource.h>

#include <set>

#include "data/format/npy.h"
#include "data/loader/calibration.h"
#include "data/loader/identity.h"
#include "runtime/core/idx.h"
#include "tests/data/data_support.h"

namespace emox::test {
namespace {

namespace fs = std::filesystem;

class SourceFilesTest : public ::testing::Test {
 protected:
  /// A file of tokens first, first + 1, ...
  fs::path make(const fs::path& name, int count = 8, int first = 0) const {
    std::vector<std::uint16_t> ids;
    for (int i = 0; i < count; ++i) ids.push_back(static_cast<std::uint16_t>(first + i));
    fs::path path = directory_.path() / name;
    fs::create_directories(path.parent_path());
    write_npy(path, std::span<const std::uint16_t>(ids));
    return path;
  }
  /// Names below the directory.
  std::vector<std::string> files(const std::string& path) const {
    std::vector<std::string> names;
    const fs::path base = directory_.path();
    for (const fs::path& p : find_source({"a", 1, path}, std::span(&base, 1)).train)
      names.push_back(p.lexically_relative(base).string());
    return names;
  }
  using Names = std::vector<std::string>;
  TemporaryDirectory directory_;
};

TEST_F(SourceFilesTest, AFileADirectoryAListAndAPattern) {
  for (const char* name : {"b.npy", "a.npy", "part-10.npy", "part-2.npy", "d/z.bin", "d/y.npy", "d/y.docs.npy",
                           "d/heldout.npy", "d/tune.npy", "e/train.npy", "e/other.npy"})
    make(name);
  EXPECT_EQ(files("a.npy"), (Names{"a.npy"}));
  EXPECT_EQ(files("part-*.npy"), (Names{"part-10.npy", "part-2.npy"}));  // by name
  EXPECT_EQ(files("b.npy,a.npy"), (Names{"a.npy", "b.npy"}));
  EXPECT_EQ(files("{b,a}.npy,part-2.npy,b.npy"), (Names{"a.npy", "b.npy", "part-2.npy"}));
  EXPECT_EQ(files("d"), (Names{"d/y.npy", "d/z.bin"}));
  EXPECT_EQ(files("d/*"), (Names{"d/y.npy", "d/z.bin"}));
  EXPECT_EQ(files("e"), (Names{"e/train.npy"}));
  EXPECT_EQ(files("[ab].npy"), (Names{"a.npy", "b.npy"}));
  EXPECT_EQ(files((directory_.path() / "*.npy").string()).size(), 4u);
}

TEST_F(SourceFilesTest, ANameIsItselfWhateverItHolds) {
  make("odd*,{x}.npy");
  make("odd1.npy");
  EXPECT_EQ(files("odd*,{x}.npy"), (Names{"odd*,{x}.npy"}));
  make("w[1]/*x/a.npy");
  const fs::path base = directory_.path() / "w[1]" / "*x";
  EXPECT_EQ(find_source({"a", 1, "?.npy"}, std::span(&base, 1)).train, (std::vector{base / "a.npy"}));
}

TEST_F(SourceFilesTest, PlacesAreTriedInTurnAndNamed) {
  const fs::path one = directory_.path() / "one", two = directory_.path() / "two";
  fs::create_directories(one);
  make("two/x/train.npy");
  make("two/x/heldout.npy");
  const std::vector<fs::path> bases{one, two};
  const SourceFiles found = find_source({"a", 2, "x"}, bases);
  EXPECT_EQ(found.base, two);
  EXPECT_EQ(found.written, "x");
  EXPECT_EQ(found.spec.path, (two / "x").string());
  EXPECT_EQ(found.train, (std::vector{two / "x" / "train.npy"}));
  EXPECT_EQ(found.held_out, (std::vector{two / "x" / "heldout.npy"}));
  EXPECT_TRUE(throws_with<UsageError>(
      [&] {
        find_source({"a", 1, "y"}, bases);
      },
      {"data.source a: y does not exist", one.string() + ", " + two.string(), "emox corpus --text"}));
  const SourceFiles none = find_held_out({"a", 1, "y"}, bases);
  EXPECT_NE(none.missing.find(two.string()), std::string::npos) << none.missing;
  EXPECT_TRUE(throws_with<UsageError>([&] { find_source({"a", 1, "*.npy"}, bases); }, {"*.npy does not exist"}));
  EXPECT_TRUE(throws_with<UsageError>(
      [&] {
        find_source({"a", 1, "one"}, std::vector{directory_.path()});
      },
      {"no train.npy and no other token file"}));
}

// The tokens of several files are one stream: every window of it once a pass, those over an edge too.
TEST_F(SourceFilesTest, FilesAreOneStream) {
  make("p/1.npy", 5, 0);
  make("p/2.npy", 1, 5);
  make("p/3.npy", 11, 6);
  const LoaderConfig config{{{"a", 1, (directory_.path() / "p").string()}}, 4, 4, 100, 1};
  std::vector<std::int32_t> seen;
  for (const Sequence& s : Loader(config).read(1, 0, 4)) {
    for (int i = 1; i < 4; ++i) EXPECT_EQ(s.tokens[idx(i)], s.tokens[0] + i);
    seen.push_back(s.tokens[0]);
  }
  std::sort(seen.begin(), seen.end());
  EXPECT_EQ(seen, (std::vector<std::int32_t>{0, 4, 8, 12}));
}

// More files than a process may open.
TEST_F(SourceFilesTest, ThousandsOfFiles) {
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  constexpr int kFiles = 400;
  for (int i = 0; i < kFiles; ++i) make("many/" + std::to_string(10000 + i) + ".npy", 4, i);
  rlimit few = before;
  few.rlim_cur = 100;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
  const LoaderConfig config{{{"a", 1, (directory_.path() / "many" / "*.npy").string()}}, 4, kFiles, 1000, 1};
  const Loader loader(config);
  std::set<std::int32_t> seen;
  for (const Sequence& s : loader.read(1, 0, kFiles)) seen.insert(s.tokens[0]);
  EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(seen.size(), idx(kFiles));
}

TEST_F(SourceFilesTest, DocumentsToChooseByComeFromAllFiles) {
  for (int f = 0; f < 3; ++f) {
    const fs::path path = make("c/" + std::to_string(f) + ".npy", 6, 10 * f);
    write_npy(document_index_path(path), std::span<const std::int64_t>(std::vector<std::int64_t>{0, 2, 6}));
  }
  const auto tokenizer = make_tokenizer("byte");
  std::set<std::int32_t> firsts;
  for (const auto& d : read_calibration({"a", 1, (directory_.path() / "c").string()}, 10, 1, *tokenizer))
    firsts.insert(d.front());
  EXPECT_EQ(firsts, (std::set<std::int32_t>{0, 2, 10, 12, 20, 22}));
}

}  // namespace
}  // namespace emox::test
