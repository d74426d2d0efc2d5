// A run whose batch or sources change on the way reads every window as often as one that never changed.
#include "data/loader/start.h"

#include <map>
#include <set>
#include <utility>

#include "data/format/npy.h"
#include "runtime/core/idx.h"
#include "tests/data/data_support.h"

namespace emox::test {
namespace {

constexpr std::int64_t kLength = 4;

class LoaderStartTest : public ::testing::Test {
 protected:
  /// Window w is the token base + w, four times.
  SourceSpec source(const std::string& label, double weight, int windows, int base) {
    std::vector<std::uint16_t> tokens;
    for (int i = 0; i < windows * kLength; ++i) tokens.push_back(static_cast<std::uint16_t>(base + i / kLength));
    const auto path = directory_.path() / (label + ".npy");
    write_npy(path, std::span<const std::uint16_t>(tokens));
    return {label, weight, path.string()};
  }
  static LoaderConfig config(std::vector<SourceSpec> sources, std::int64_t per_step, LoaderStart start = {}) {
    return {std::move(sources), kLength, per_step, 60000, 1, std::move(start)};
  }
  /// Appends the windows of the steps to those of each label.
  static void read(std::map<std::string, std::vector<int>>& seen, const LoaderConfig& c, std::int64_t first,
                   std::int64_t last) {
    const Loader loader(c);
    for (std::int64_t step = first; step <= last; ++step)
      for (const Sequence& s : loader.read(step, 0, c.sequences_per_step))
        seen[c.sources[idx(s.label)].label].push_back(s.tokens[0]);
  }
  TemporaryDirectory directory_;
};

using Seen = std::map<std::string, std::vector<int>>;

TEST_F(LoaderStartTest, AnotherBatchReadsTheSameSequencesInTheSameOrder) {
  const std::vector<SourceSpec> sources = {source("a", 1, 37, 0), source("b", 2.5, 50, 1000)};
  Seen whole, parts;
  read(whole, config(sources, 6), 1, 40);  // 240 sequences
  const LoaderConfig first = config(sources, 6);
  read(parts, first, 1, 10);
  const LoaderConfig second = config(sources, 20, continue_after(first, 10, sources));
  EXPECT_EQ(second.start.step, 10);
  EXPECT_EQ(second.start.sequences, 60);
  read(parts, second, 11, 13);
  const LoaderConfig third = config(sources, 3, continue_after(second, 13, sources));
  EXPECT_EQ(third.start.sequences, 120);
  read(parts, third, 14, 53);
  EXPECT_EQ(parts, whole);
  EXPECT_DOUBLE_EQ(Loader(third).epochs(53)[0], Loader(first).epochs(40)[0]);
}

TEST_F(LoaderStartTest, SourcesThatStayGoOnAndThoseThatComeBackBeginAnew) {
  const SourceSpec a = source("a", 1, 100, 0), b = source("b", 1, 90, 1000), c = source("c", 3, 80, 2000);
  Seen seen;
  const LoaderConfig one = config({a, b}, 8);
  read(seen, one, 1, 5);
  const LoaderConfig two = config({c, b}, 8, continue_after(one, 5, {c, b}));  // a is left out, c is new and first
  read(seen, two, 6, 12);
  const LoaderConfig three = config({b, a, c}, 8, continue_after(two, 12, {b, a, c}));
  ASSERT_EQ(three.start.sources.size(), 4U);
  EXPECT_EQ(three.start.sources[0].label, "");  // what was under a may be other text by now
  EXPECT_EQ(three.start.sources[3], (LoaderStart::Source{"a", 3, 0}));
  const std::vector<int> left_out = std::exchange(seen["a"], {});
  read(seen, three, 13, 20);
  ASSERT_GT(seen["c"].size(), 50U);
  // No window twice before all were read, in whatever order the sources stood.
  for (const auto& [label, windows] : seen)
    EXPECT_EQ(std::set<int>(windows.begin(), windows.end()).size(), windows.size()) << label;
  Seen alone;
  read(alone, one, 1, 40);
  EXPECT_TRUE(std::equal(seen["b"].begin(), seen["b"].end(), alone["b"].begin()));
  EXPECT_TRUE(std::equal(left_out.begin(), left_out.end(), alone["a"].begin()));
  EXPECT_DOUBLE_EQ(Loader(three).epochs(20)[2], static_cast<double>(seen["c"].size()) / 80);
}

TEST_F(LoaderStartTest, OtherTextUnderALabelBeginsAtItsFirstSequence) {
  const std::vector<SourceSpec> sources = {source("a", 1, 30, 0), source("b", 1, 30, 1000)};
  const LoaderConfig before = config(sources, 4);
  const LoaderStart start = continue_after(before, 9, sources, {"b"});
  ASSERT_EQ(start.sources.size(), 3U);
  EXPECT_EQ(start.sources[0].read + start.sources[1].read, 36);
  EXPECT_EQ(start.sources[1].label, "");
  EXPECT_EQ(start.sources[2], (LoaderStart::Source{"b", 2, 0}));
}

}  // namespace
}  // namespace emox::test
