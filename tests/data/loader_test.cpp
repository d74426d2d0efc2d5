#include "data/loader/loader.h"

#include <map>
#include <numeric>
#include <set>

#include "data/format/npy.h"
#include "data/loader/heldout.h"
#include "runtime/core/idx.h"
#include "tests/data/data_support.h"

namespace emox::test {
namespace {

constexpr std::int64_t kLength = 4;

class LoaderTest : public ::testing::Test {
 protected:
  /// A file whose window w is the tokens base + w, four times; `extra` tokens make a tail that no window covers.
  SourceSpec source(const std::string& label, double weight, int windows, int base, int extra = 0) {
    std::vector<std::uint16_t> tokens;
    for (int i = 0; i < windows * kLength; ++i) tokens.push_back(static_cast<std::uint16_t>(base + i / kLength));
    tokens.insert(tokens.end(), idx(extra), 59999);
    const auto path = directory_.path() / (label + ".npy");
    write_npy(path, std::span<const std::uint16_t>(tokens));
    return {label, weight, path.string()};
  }
  static LoaderConfig config(std::vector<SourceSpec> sources, std::int64_t per_step = 6, std::uint64_t seed = 1) {
    return {std::move(sources), kLength, per_step, 60000, seed};
  }
  static bool same(const std::vector<Sequence>& a, const std::vector<Sequence>& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                      [](const Sequence& x, const Sequence& y) { return x.tokens == y.tokens && x.label == y.label; });
  }
  TemporaryDirectory directory_;
};

TEST_F(LoaderTest, SequencesAreWholeWindowsOfTheirSource) {
  const Loader loader(config({source("a", 1, 50, 0, 3), source("b", 2, 70, 1000)}));
  for (std::int64_t step = 1; step <= 40; ++step) {
    for (const Sequence& s : loader.read(step, 0, 6)) {
      ASSERT_EQ(s.tokens.size(), 4u);
      EXPECT_EQ(s.label, s.tokens[0] >= 1000 ? 1 : 0);
      EXPECT_EQ(s.tokens, std::vector<std::int32_t>(4, s.tokens[0]));
      EXPECT_LT(s.tokens[0], 59999) << "the tail was read";
    }
  }
}

TEST_F(LoaderTest, EveryEpochVisitsEveryWindowOnceInAnotherOrder) {
  const Loader loader(config({source("a", 1, 37, 0), source("b", 3, 11, 1000), source("c", 1, 1, 2000)}, 5));
  std::map<int, std::vector<std::int32_t>> visits;
  for (std::int64_t step = 1; step <= 120; ++step) {
    for (const Sequence& s : loader.read(step, 0, 5)) visits[s.label].push_back(s.tokens[0]);
  }
  const std::vector<std::size_t> windows = {37, 11, 1};
  for (int label = 0; label < 3; ++label) {
    const std::size_t n = windows[idx(label)];
    const auto& seen = visits[label];
    ASSERT_GE(seen.size(), 3 * n);
    for (std::size_t epoch = 0; epoch + 1 < seen.size() / n; ++epoch) {
      const auto begin = seen.begin() + static_cast<std::ptrdiff_t>(epoch * n);
      ASSERT_EQ(std::set<std::int32_t>(begin, begin + static_cast<std::ptrdiff_t>(n)).size(), n)
          << label << " epoch " << epoch;
    }
    if (n > 1) {
      const auto half = static_cast<std::ptrdiff_t>(n);
      EXPECT_FALSE(std::equal(seen.begin(), seen.begin() + half, seen.begin() + half));
    }
  }
}

TEST_F(LoaderTest, AnyPartitionOfAStepGivesTheSameSequences) {
  const Loader loader(config({source("a", 1, 50, 0), source("b", 1.7, 70, 1000)}, 12));
  for (const std::int64_t step : {1, 2, 17, 1000}) {
    const std::vector<Sequence> whole = loader.read(step, 0, 12);
    for (const std::int64_t parts : {1, 2, 3, 4, 6, 12}) {
      std::vector<Sequence> joined;
      for (std::int64_t p = 0; p < parts; ++p) {
        for (Sequence& s : loader.read(step, p * 12 / parts, (p + 1) * 12 / parts)) joined.push_back(std::move(s));
      }
      EXPECT_TRUE(same(whole, joined)) << step << " in " << parts;
    }
    EXPECT_TRUE(loader.read(step, 5, 5).empty());
  }
}

TEST_F(LoaderTest, AFreshLoaderContinuesWhereAnotherStopped) {
  const auto sources = std::vector{source("a", 1, 50, 0), source("b", 1, 70, 1000)};
  const Loader first(config(sources));
  for (std::int64_t step = 1; step <= 20; ++step) first.read(step, 0, 6);
  const Loader resumed(config(sources));
  EXPECT_TRUE(same(first.read(21, 0, 6), resumed.read(21, 0, 6)));
  EXPECT_TRUE(same(first.read(3, 0, 6), resumed.read(3, 0, 6)));  // what was read before leaves no trace
}

TEST_F(LoaderTest, SeedDecidesTheOrder) {
  const auto sources = std::vector{source("a", 1, 500, 0)};
  EXPECT_FALSE(same(Loader(config(sources, 6, 1)).read(1, 0, 6), Loader(config(sources, 6, 2)).read(1, 0, 6)));
}

TEST_F(LoaderTest, MixtureFollowsTheWeights) {
  const Loader loader(config({source("a", 1, 500, 0), source("b", 3, 500, 1000)}, 8));
  int of_b = 0;
  for (std::int64_t step = 1; step <= 50; ++step) {
    for (const Sequence& s : loader.read(step, 0, 8)) of_b += s.label;
  }
  EXPECT_NEAR(of_b, 300, 3);
}

TEST_F(LoaderTest, EpochsAndNoticesAgreeWithWhatIsRead) {
  const Loader loader(config({source("a", 1, 10, 0), source("b", 1, 1000, 5000)}, 5));
  const std::vector<double> passes = loader.epochs(20);  // 100 sequences, about half of each source
  EXPECT_NEAR(passes[0], 5.0, 0.3);
  EXPECT_NEAR(passes[1], 0.05, 0.003);
  EXPECT_EQ(loader.epochs(0), (std::vector<double>{0, 0}));
  std::int64_t read = 0;
  int noticed = 0;
  for (std::int64_t step = 1; step <= 20; ++step) {
    const std::int64_t before = read;
    for (const Sequence& s : loader.read(step, 0, 5)) read += s.label == 0;
    // A pass starts in this step if its sequences hold a first one of a pass.
    bool starts = false;
    for (std::int64_t n = before; n < read; ++n) starts = starts || (n > 0 && n % 10 == 0);
    const std::vector<std::string> notices = loader.epoch_notices(step);
    ASSERT_EQ(notices.size(), starts ? 1u : 0u) << "step " << step;
    if (!starts) continue;
    ++noticed;
    EXPECT_NE(notices[0].find("source a starts pass " + std::to_string(noticed + 1)), std::string::npos) << notices[0];
  }
  EXPECT_GE(noticed, 4);
}

TEST_F(LoaderTest, SourceSpecParsesAndRejects) {
  const SourceSpec spec = SourceSpec::parse("german-help:0.5:a/b:c");
  EXPECT_EQ(spec.label, "german-help");
  EXPECT_EQ(spec.weight, 0.5);
  EXPECT_EQ(spec.path, "a/b:c");
  for (const char* bad : {"", "x", "x:1", ":1:p", "x:1:"}) {
    EXPECT_TRUE(throws_with<UsageError>([&] { SourceSpec::parse(bad); }, {"label:weight:path", bad})) << bad;
  }
  for (const char* bad : {"x::p", "x:0:p", "x:-1:p", "x:nan:p", "x:1e999:p", "x:1y:p"}) {
    EXPECT_TRUE(throws_with<UsageError>([&] { SourceSpec::parse(bad); }, {"weight", bad})) << bad;
  }
}

TEST_F(LoaderTest, OpensOnlyUsableSources) {
  const auto open = [&](const SourceSpec& spec) { return [=] { Loader(config({spec})); }; };
  EXPECT_TRUE(
      throws_with<UsageError>(open({"a", 1, "/nonexistent"}), {"data.source a", "/nonexistent", "emox corpus"}));
  EXPECT_TRUE(throws_with<UsageError>(open({"a", 1, directory_.path().string()}), {"no train.npy"}));
  SourceSpec tiny = source("tiny", 1, 1, 0);
  LoaderConfig longer = config({tiny});
  longer.sequence_length = 5;
  EXPECT_TRUE(throws_with<UsageError>([&] { Loader{longer}; }, {"tiny", "4 tokens", "sequence of 5"}));
  EXPECT_TRUE(throws_with<UsageError>([&] { Loader(config({tiny, tiny})); }, {"tiny", "twice"}));
  EXPECT_TRUE(throws_with<UsageError>([&] { Loader(config({})); }, {"at least one source"}));
}

TEST_F(LoaderTest, ADirectoryStandsForItsTrainingFile) {
  const SourceSpec file = source("a", 1, 20, 0);
  const auto domain = directory_.path() / "domain";
  std::filesystem::create_directory(domain);
  std::filesystem::copy_file(file.path, domain / "train.npy");
  EXPECT_TRUE(same(Loader(config({file})).read(1, 0, 6), Loader(config({{"a", 1, domain.string()}})).read(1, 0, 6)));
}

TEST_F(LoaderTest, ChecksIdsAndRanges) {
  LoaderConfig small = config({source("a", 1, 20, 0)});
  small.vocab_size = 19;
  const Loader loader(small);
  EXPECT_TRUE(throws_with<IoError>(
      [&] {
        for (std::int64_t s = 1; s <= 4; ++s) loader.read(s, 0, 6);
      },
      {"a.npy", "token id 19", "position 76"}));
  EXPECT_THROW(loader.read(0, 0, 1), ShapeError);
  EXPECT_THROW(loader.read(1, 0, 7), ShapeError);
  EXPECT_THROW(loader.read(1, 3, 2), ShapeError);
}

class HeldOutTest : public LoaderTest {
 protected:
  SourceSpec domain(const std::string& label, const std::vector<std::string>& documents) {
    const auto path = directory_.path() / label;
    std::filesystem::create_directory(path);
    std::vector<std::uint16_t> tokens;
    std::vector<std::int64_t> offsets = {0};
    for (const std::string& d : documents) {
      for (const char c : d) tokens.push_back(static_cast<unsigned char>(c));
      tokens.push_back(256);
      offsets.push_back(static_cast<std::int64_t>(tokens.size()));
    }
    write_npy(path / "heldout.npy", std::span<const std::uint16_t>(tokens));
    write_npy(path / "heldout.docs.npy", std::span<const std::int64_t>(offsets));
    return {label, 1, path.string()};
  }
  std::unique_ptr<Tokenizer> tokenizer_ = make_tokenizer("byte");
};

TEST_F(HeldOutTest, ReadsTheFirstDocumentsOfEverySource) {
  const auto set = read_held_out({domain("x", {"one", "three", "four"}), domain("y", {"\xC3\xA4"})}, 2, *tokenizer_);
  ASSERT_EQ(set.sources.size(), 2u);
  EXPECT_TRUE(set.skipped.empty());
  EXPECT_EQ(set.sources[0].label, "x");
  ASSERT_EQ(set.sources[0].documents.size(), 2u);
  EXPECT_EQ(tokenizer_->decode(set.sources[0].documents[1]), "three");
  EXPECT_EQ(set.sources[0].documents[0], (std::vector<std::int32_t>{'o', 'n', 'e'}));  // without EOS
  EXPECT_EQ(set.sources[0].bytes, 8);
  EXPECT_EQ(set.sources[1].bytes, 2);
}

TEST_F(HeldOutTest, TokensWithoutTextHaveNoBytes) {
  const auto path = directory_.path() / "ids";
  std::filesystem::create_directory(path);
  const std::vector<std::uint32_t> tokens{70000, 5, 100257, 9, 100257};
  const std::vector<std::int64_t> offsets{0, 3, 5};
  write_npy(path / "heldout.npy", std::span<const std::uint32_t>(tokens));
  write_npy(path / "heldout.docs.npy", std::span<const std::int64_t>(offsets));
  const auto set = read_held_out({{"ids", 1, path.string()}}, 9, *make_tokenizer("dolma2"));
  ASSERT_EQ(set.sources.size(), 1u);
  EXPECT_EQ(set.sources[0].documents, (std::vector<std::vector<std::int32_t>>{{70000, 5}, {9}}));
  EXPECT_EQ(set.sources[0].bytes, 0);
  EXPECT_TRUE(throws_with<IoError>([&] { read_held_out({{"ids", 1, path.string()}}, 9, *tokenizer_); }, {"70000"}));
}

TEST_F(HeldOutTest, NamesSourcesWithoutAHeldOutPart) {
  const SourceSpec file = source("plain", 1, 3, 0);
  const auto set = read_held_out({file, domain("x", {"one"})}, 5, *tokenizer_);
  ASSERT_EQ(set.sources.size(), 1u);
  ASSERT_EQ(set.skipped.size(), 1u);
  EXPECT_NE(set.skipped[0].find("plain: "), std::string::npos);
  const auto none = read_held_out({file}, 5, *tokenizer_);
  EXPECT_TRUE(none.sources.empty());
  ASSERT_EQ(none.skipped.size(), 1u);
  EXPECT_NE(none.skipped[0].find("one file"), std::string::npos);
  const auto missing = read_held_out({{"gone", 1, (directory_.path() / "gone").string()}}, 5, *tokenizer_);
  ASSERT_EQ(missing.skipped.size(), 1u);
  EXPECT_NE(missing.skipped[0].find("nothing at "), std::string::npos);
  EXPECT_TRUE(throws_with<UsageError>([&] { read_held_out({file}, 0, *tokenizer_); }, {"eval_documents = 0"}));
}

TEST_F(HeldOutTest, SourcesOfDocumentsComeAlongWhereTheyAreKnown) {
  const SourceSpec x = domain("x", {"one", "", "three", "four"});
  EXPECT_TRUE(read_held_out({x}, 9, *tokenizer_).sources[0].files.empty());
  const auto path = std::filesystem::path(x.path) / "heldout.files.npy";
  write_npy(path, std::span<const std::int64_t>(std::vector<std::int64_t>{7, 8, 7, 2}));
  const HeldOut held = read_held_out({x}, 3, *tokenizer_).sources[0];
  EXPECT_EQ(held.documents.size(), 2u) << "the empty one is left out";
  EXPECT_EQ(held.files, (std::vector<std::int64_t>{7, 7}));
  write_npy(path, std::span<const std::int64_t>(std::vector<std::int64_t>{7, 8}));
  EXPECT_TRUE(throws_with<UsageError>([&] { read_held_out({x}, 3, *tokenizer_); }, {"heldout.files.npy", "2", "4"}));
}

TEST_F(HeldOutTest, ThePartForChoosingSettingsIsAnotherOne) {
  const SourceSpec x = domain("x", {"reported"});
  EXPECT_TRUE(throws_with<UsageError>([&] { read_held_out({x}, 9, *tokenizer_, kTunePart); },
                                      {x.path, "tune.npy", "eval_part", "emox corpus --force"}));
  const SourceSpec y = domain("y", {"for choosing"});
  for (const char* ending : {".npy", ".docs.npy"})
    std::filesystem::copy(std::filesystem::path(y.path) / (std::string("heldout") + ending),
                          std::filesystem::path(x.path) / (std::string("tune") + ending));
  const auto text = [&](const std::string& part) {
    return tokenizer_->decode(read_held_out({x}, 9, *tokenizer_, part).sources[0].documents[0]);
  };
  EXPECT_EQ(text(kTunePart), "for choosing");
  EXPECT_EQ(text(kReportPart), "reported");
  const SourceSpec file = source("plain", 1, 3, 0);
  EXPECT_EQ(read_held_out({file}, 5, *tokenizer_, kTunePart).skipped.size(), 1u);
}

TEST_F(HeldOutTest, AMissingIndexIsNamed) {
  const SourceSpec x = domain("x", {"one"});
  std::filesystem::remove(std::filesystem::path(x.path) / "heldout.docs.npy");
  EXPECT_TRUE(
      throws_with<UsageError>([&] { read_held_out({x}, 1, *tokenizer_); }, {"cannot open", "heldout.docs.npy"}));
}

}  // namespace
}  // namespace emox::test
