#include "data/corpus/corpus.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "data/corpus/assemble.h"
#include "data/corpus/process.h"
#include "data/format/token_file.h"
#include "data/loader/heldout.h"
#include "data/loader/loader.h"
#include "runtime/telemetry/log.h"
#include "tests/data/data_support.h"

namespace emox::test {
namespace {
namespace fs = std::filesystem;

using Texts = std::vector<std::string>;

Texts numbered_texts(int count, std::size_t bytes) {
  Texts texts;
  for (int i = 0; i < count; ++i) texts.push_back(fmt::format("{:06} {}", i, std::string(bytes - 7, 'x')));
  return texts;
}

TEST(Domains, PatternsMatchPaths) {
  EXPECT_TRUE(matches({"a/**.html"}, "a/b/c.html"));
  EXPECT_TRUE(matches({"a/*.html"}, "a/c.html"));
  EXPECT_FALSE(matches({"a/*.html"}, "a/b/c.html"));
  EXPECT_FALSE(matches({"a/*.html"}, "a/c.htmlx"));
  EXPECT_FALSE(matches({"a/**", "!**.dat"}, "a/b.dat"));
  EXPECT_TRUE(matches({"a/**", "!**.dat"}, "a/b.data"));
  EXPECT_TRUE(matches({"x", "a/*"}, "a/b"));
  EXPECT_FALSE(matches({"!a"}, "b"));
}

TEST(Domains, AreWellFormed) {
  std::set<std::string> labels;
  for (const Domain& d : standard_domains()) {
    EXPECT_TRUE(labels.insert(d.label).second) << d.label;
    EXPECT_EQ(d.label.find_first_not_of("abcdefghijklmnopqrstuvwxyz-"), std::string::npos) << d.label;
    EXPECT_FALSE(d.packages.empty()) << d.label;
  }
  EXPECT_GE(labels.size(), 9u);
}

TEST(Documents, DuplicatesAreDroppedAcrossFilesAndDomains) {
  SeenTexts seen;
  DomainReport first, second;
  const std::string a(300, 'a'), b(300, 'b'), c(300, 'c');
  EXPECT_EQ(documents_of_file({a, b, a}, seen, first), (Texts{a, b}));
  EXPECT_EQ(documents_of_file({b, c + "\r\n"}, seen, second), (Texts{c}));
  EXPECT_EQ(documents_of_file({c}, seen, second), Texts{});
  EXPECT_EQ(first.duplicates, 1);
  EXPECT_EQ(second.duplicates, 2);
}

TEST(Documents, ShortOnesAreJoinedOrDropped) {
  SeenTexts seen;
  DomainReport report;
  const std::string a(150, 'a'), b(150, 'b');
  EXPECT_EQ(documents_of_file({a, b, "tiny"}, seen, report), (Texts{a + "\n\n" + b}));
  EXPECT_EQ(report.too_short, 1);
}

TEST(Split, DependsOnTheDocumentsAndNotOnTheirOrder) {
  Texts texts = numbered_texts(1000, 100);
  const Split split = split_documents(texts, 1'000'000, 0.05);
  std::reverse(texts.begin(), texts.end());
  const Split again = split_documents(texts, 1'000'000, 0.05);
  EXPECT_EQ(split.train, again.train);
  EXPECT_EQ(split.held_out, again.held_out);
  EXPECT_EQ(split.held_out.size(), 50u);
  EXPECT_EQ(split.train.size(), 950u);
  std::set<std::string> all(split.train.begin(), split.train.end());
  for (const std::string& t : split.held_out) EXPECT_TRUE(all.insert(t).second) << "held out and trained on";
  EXPECT_EQ(all.size(), 1000u);
  EXPECT_FALSE(std::is_sorted(split.train.begin(), split.train.end())) << "pseudo-random order";
}

TEST(Split, CapsTheBytesAndHoldsOutAMinimum) {
  const Split capped = split_documents(numbered_texts(1000, 100), 10'050, 0.05);
  EXPECT_EQ(capped.train.size(), 100u);
  EXPECT_EQ(capped.held_out.size(), 20u);  // the minimum, above 5 % of 100
  const Split few = split_documents(numbered_texts(10, 100), 10'050, 0.05);
  EXPECT_EQ(few.held_out.size(), 5u);  // half of a small domain
  EXPECT_EQ(few.train.size(), 5u);
}

TEST(Process, ReportsOutputExitCodeAndAMissingProgram) {
  const ProcessResult result = run_process({"sh", "-c", "echo \"$1\"; echo err >&2; exit 3", "sh", "a b;c"});
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_EQ(result.output, "a b;c\nerr\n");
  EXPECT_EQ(run_process({"pwd"}, "/").output, "/\n");
  EXPECT_TRUE(throws_with<UsageError>([] { run_process({"no-such-program-here"}); }, {"no-such-program-here"}));
}

/// Builds from packages made here, so nothing is downloaded.
class CorpusTest : public ::testing::Test {
 protected:
  void SetUp() override {
    log_.set_console(false);
    if (run_command("command -v dpkg-deb sha256sum").exit_code != 0) GTEST_SKIP() << "needs dpkg-deb and sha256sum";
    std::string quotes;
    for (int i = 0; i < 400; ++i)
      quotes += fmt::format("Quotation {} says {}.\n%\n", i, std::string(200, static_cast<char>('a' + i % 26)));
    package("quotes", {{"usr/share/q/all", quotes}, {"usr/share/q/all.dat", "never read"}});
    std::map<std::string, std::string> pages;
    for (int i = 0; i < 60; ++i)
      pages[fmt::format("usr/share/p/{}.html", i)] = fmt::format("<h1>Page {}</h1><p>{}</p>", i, std::string(400, 'p'));
    package("pages", pages);
    options_.output = (directory_.path() / "out" / "corpus").string();
    options_.download_directory = (directory_.path() / "debs").string();
    options_.bytes_per_domain = 40'000;
  }

  void package(const std::string& name, const std::map<std::string, std::string>& files) {
    const fs::path root = directory_.path() / "roots" / name;
    fs::create_directories(root / "DEBIAN");
    fs::create_directories(directory_.path() / "debs");
    write_bytes(root / "DEBIAN" / "control",
                "Package: " + name +
                    "\nVersion: 1:2.0-3\nArchitecture: all\nMaintainer: nobody <n@example.org>\nDescription: test\n");
    for (const auto& [path, content] : files) {
      fs::create_directories((root / path).parent_path());
      write_bytes(root / path, content);
    }
    const std::string deb = (directory_.path() / "debs" / (name + "_1%3a2.0-3_all.deb")).string();
    const ProcessResult made = run_process({"dpkg-deb", "--build", root.string(), deb});
    ASSERT_EQ(made.exit_code, 0) << made.output;
  }
  CorpusReport build() { return build_corpus(options_, table_, log_); }
  std::map<std::string, std::string> contents() const {
    std::map<std::string, std::string> files;
    for (const auto& e : fs::recursive_directory_iterator(options_.output)) {
      if (e.is_regular_file()) files[e.path().lexically_relative(options_.output).string()] = read_bytes(e.path());
    }
    return files;
  }

  TemporaryDirectory directory_;
  Log log_;
  CorpusOptions options_;
  std::vector<Domain> table_ = {{"quotes", {"quotes"}, {"usr/share/q/*", "!**.dat"}, Rule::Fortune},
                                {"pages", {"pages"}, {"usr/share/p/*.html"}, Rule::Html}};
};

TEST_F(CorpusTest, BuildsWhatTheLoaderReads) {
  const CorpusReport report = build();
  ASSERT_EQ(report.domains.size(), 2u);
  EXPECT_FALSE(report.reused);
  EXPECT_EQ(report.domains[0].packages[0].version, "1:2.0-3");
  EXPECT_EQ(report.domains[0].packages[0].sha256.size(), 64u);
  EXPECT_EQ(report.domains[1].held_out_documents, 20);
  EXPECT_EQ(report.domains[1].documents, 40);
  std::vector<SourceSpec> sources;
  for (const std::string& line : source_lines(report)) sources.push_back(SourceSpec::parse(line));
  const auto tokenizer = make_tokenizer("byte");
  const TokenFile train(fs::path(sources[1].path) / "train.npy", tokenizer->vocab_size());
  EXPECT_EQ(train.size(), report.domains[1].bytes + report.domains[1].documents);
  const auto offsets = read_document_index(train.path(), train.size());
  std::vector<std::int32_t> first(static_cast<std::size_t>(offsets[1]));
  train.read(0, offsets[1], first.data());
  EXPECT_EQ(first.back(), kByteEos);
  EXPECT_TRUE(tokenizer->decode(first).starts_with("Page ")) << tokenizer->decode(first);
  const Loader loader({sources, 64, 4, tokenizer->vocab_size(), 1});
  EXPECT_EQ(loader.read(1, 0, 4).size(), 4u);
  const HeldOutSet held = read_held_out(sources, 1000, *tokenizer);
  EXPECT_EQ(static_cast<std::int64_t>(held.sources[0].documents.size()), report.domains[0].held_out_documents);
  EXPECT_EQ(held.sources[0].bytes, report.domains[0].held_out_bytes);
}

TEST_F(CorpusTest, TwoBuildsGiveTheSameFiles) {
  build();
  const auto first = contents();
  EXPECT_EQ(first.size(), 9u);
  fs::remove_all(options_.output);
  build();
  EXPECT_EQ(contents(), first);
}

TEST_F(CorpusTest, ACompleteCorpusIsReusedAndOthersAreNotTouched) {
  const CorpusReport built = build();
  fs::remove_all(options_.download_directory);  // reuse needs no package
  const CorpusReport again = build();
  EXPECT_TRUE(again.reused);
  EXPECT_EQ(to_json(again)["domains"], to_json(built)["domains"]);
  options_.bytes_per_domain = 30'000;
  EXPECT_TRUE(throws_with<UsageError>([&] { build(); }, {"other options", "--force"}));
  options_.output = directory_.path().string();
  EXPECT_TRUE(throws_with<UsageError>([&] { build(); }, {"no corpus", "corpus.json"}));
}

TEST_F(CorpusTest, ForceReplacesACorpus) {
  build();
  options_.bytes_per_domain = 20'000;
  options_.force = true;
  const CorpusReport report = build();
  EXPECT_FALSE(report.reused);
  EXPECT_LE(report.domains[0].bytes, 20'000);
  EXPECT_EQ(contents().size(), 9u);
  const fs::path parent = fs::path(options_.output).parent_path();
  EXPECT_EQ(std::distance(fs::directory_iterator(parent), fs::directory_iterator()), 1)
      << "something was left beside the corpus";
}

TEST_F(CorpusTest, AnInterruptedBuildIsNotACorpus) {
  const fs::path partial = options_.output + ".partial";
  fs::create_directories(partial / "quotes");
  write_bytes(partial / "quotes" / "train.npy", "half a file");
  EXPECT_FALSE(build().reused);
  EXPECT_FALSE(fs::exists(partial));
  EXPECT_EQ(contents().size(), 9u);
}

TEST_F(CorpusTest, TwoBuildsAtOnceAreRefused) {
  fs::create_directories(fs::path(options_.output).parent_path());
  const int held = ::open((options_.output + ".lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  ASSERT_EQ(::flock(held, LOCK_EX | LOCK_NB), 0);
  EXPECT_TRUE(throws_with<UsageError>([&] { build(); }, {"another", "corpus.lock"}));
  ::close(held);
  EXPECT_EQ(build().domains.size(), 2u);
}

TEST_F(CorpusTest, AFailingBuildLeavesTheOldCorpusAlone) {
  build();
  const auto before = contents();
  options_.force = true;
  table_[1].files = {"usr/share/elsewhere/**"};
  EXPECT_TRUE(throws_with<IoError>([&] { build(); }, {"domain pages", "usr/share/elsewhere/**"}));
  EXPECT_EQ(contents(), before);
}

TEST_F(CorpusTest, ChosenDomainsAndUnknownLabels) {
  options_.domains = {"pages"};
  const CorpusReport report = build();
  ASSERT_EQ(report.domains.size(), 1u);
  EXPECT_EQ(report.domains[0].label, "pages");
  options_.domains = {"page"};
  EXPECT_TRUE(throws_with<UsageError>([&] { build(); }, {"'page'", "quotes, pages"}));
}

TEST_F(CorpusTest, PackagesThatWereThereBeforeStay) {
  build();
  EXPECT_EQ(std::distance(fs::directory_iterator(options_.download_directory), fs::directory_iterator()), 2);
}

TEST_F(CorpusTest, ADamagedPackageIsNamed) {
  const fs::path deb = fs::path(options_.download_directory) / "pages_1%3a2.0-3_all.deb";
  write_bytes(deb, "not a package");
  EXPECT_TRUE(throws_with<IoError>([&] { build(); }, {deb.string(), "not a readable package"}));
}

}  // namespace
}  // namespace emox::test
