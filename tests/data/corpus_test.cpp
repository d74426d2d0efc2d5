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
#include "runtime/core/idx.h"
#include "runtime/telemetry/log.h"
#include "tests/data/data_support.h"

namespace emox::test {
namespace {
namespace fs = std::filesystem;

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
    // Every sixth quotation and every fifth page says what others say too; they are no source of held-out text.
    const std::string common = made_text(-1, 120);
    std::string quotes;
    for (int i = 0; i < 600; ++i)
      quotes += fmt::format("Quotation {} says {}.\n%\n", i, made_text(i, 200) + (i % 6 == 0 ? common : ""));
    package("quotes", {{"usr/share/q/all", quotes}, {"usr/share/q/all.dat", "never read"}});
    std::map<std::string, std::string> pages;
    for (int i = 0; i < 200; ++i)
      pages[fmt::format("usr/share/p/{}.html", i)] = fmt::format(
          "<h1>Page {}</h1><p>{}</p>", i, made_text(1000 + i, 400) + (i % 5 == 0 ? common : made_text(2000 + i, 120)));
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
  EXPECT_EQ(report.domains[1].held_out.documents, 20);
  EXPECT_EQ(report.domains[1].tune.documents, 20);
  EXPECT_EQ(report.domains[1].held_out.sources, 20);
  std::vector<SourceSpec> sources;
  for (const std::string& line : source_lines(report)) sources.push_back(SourceSpec::parse(line));
  const auto tokenizer = make_tokenizer("byte");
  const TokenFile train(fs::path(sources[1].path) / "train.npy", tokenizer->vocab_size());
  EXPECT_EQ(train.size(), report.domains[1].train.bytes + report.domains[1].train.documents);
  const auto offsets = read_document_index(train.path(), train.size());
  std::vector<std::int32_t> first(idx(offsets[1]));
  train.read(0, offsets[1], first.data());
  EXPECT_EQ(first.back(), kByteEos);
  EXPECT_TRUE(tokenizer->decode(first).starts_with("Page ")) << tokenizer->decode(first);
  const Loader loader({sources, 64, 4, tokenizer->vocab_size(), 1});
  EXPECT_EQ(loader.read(1, 0, 4).size(), 4u);
  const HeldOutSet held = read_held_out(sources, 1000, *tokenizer);
  EXPECT_EQ(static_cast<std::int64_t>(held.sources[0].documents.size()), report.domains[0].held_out.documents);
  EXPECT_EQ(held.sources[0].bytes, report.domains[0].held_out.bytes);
  // The numbers of the sources lead to their names.
  const HeldOut pages = held.sources[1];
  std::vector<std::string> names;
  std::ifstream lines(fs::path(sources[1].path) / kFileNames);
  for (std::string line; std::getline(lines, line);) names.push_back(line);
  ASSERT_EQ(pages.files.size(), pages.documents.size());
  for (std::size_t i = 0; i < pages.files.size(); ++i) {
    const std::string title = tokenizer->decode(pages.documents[i]).substr(0, 8);  // "Page 12\n"
    const std::string number = title.substr(5, title.find('\n') - 5);
    EXPECT_EQ(names.at(idx(pages.files[i])), "usr/share/p/" + number + ".html");
  }
}

/// The documents of a part, as text.
std::vector<std::string> read_part(const fs::path& directory, const std::string& part) {
  const auto tokenizer = make_tokenizer("byte");
  const TokenFile file(directory / (part + ".npy"), tokenizer->vocab_size());
  const auto offsets = read_document_index(file.path(), file.size());
  std::vector<std::string> documents;
  for (std::size_t i = 1; i < offsets.size(); ++i) {
    std::vector<std::int32_t> ids(idx(offsets[i] - offsets[i - 1]));
    file.read(offsets[i - 1], static_cast<std::int64_t>(ids.size()), ids.data());
    documents.push_back(tokenizer->decode(ids));
  }
  return documents;
}

/// Overlap by its definition, from the files: no hash and nothing of the builder's code.
double repeated_naively(const std::vector<std::string>& held, const std::vector<std::string>& train) {
  std::set<std::string_view> spans;
  for (const std::string_view t : train)
    for (std::size_t i = 0; i + 80 <= t.size(); ++i) spans.insert(t.substr(i, 80));
  std::size_t bytes = 0, repeated = 0;
  for (const std::string_view t : held) {
    std::size_t until = 0;
    for (std::size_t i = 0; i < t.size(); ++i) {
      if (i + 80 <= t.size() && spans.contains(t.substr(i, 80))) until = i + 80;
      repeated += i < until;
    }
    bytes += t.size();
  }
  return static_cast<double>(repeated) / static_cast<double>(bytes);
}

TEST_F(CorpusTest, NoCapAndNoFractionTrainsOnWhatAnotherHoldsOut) {
  std::map<std::string, std::set<std::string>> trained, held;
  int build_number = 0;
  const fs::path base = directory_.path() / "caps";
  for (const auto& [bytes, fraction] : {std::pair(10'000, 0.5), std::pair(30'000, 0.01), std::pair(1'000'000, 0.3)}) {
    options_.output = (base / std::to_string(build_number++)).string();
    options_.bytes_per_domain = bytes;
    options_.held_out_fraction = fraction;
    const CorpusReport report = build();
    for (const DomainReport& d : report.domains) {
      const fs::path directory = fs::path(options_.output) / d.label;
      const auto train = read_part(directory, "train");
      trained[d.label].insert(train.begin(), train.end());
      for (const auto& [name, part] : {std::pair("tune", &d.tune), std::pair("heldout", &d.held_out)}) {
        const auto texts = read_part(directory, name);
        EXPECT_GE(texts.size(), 20u) << d.label;
        held[d.label].insert(texts.begin(), texts.end());
        EXPECT_NEAR(part->in_training_file, repeated_naively(texts, train), 0.02);
        EXPECT_LT(part->in_training_text, 0.03);
        EXPECT_LE(part->in_training_file, part->in_training_text);
      }
      EXPECT_GT(d.repeated, 0) << d.label;
    }
  }
  for (const auto& [label, texts] : held) {
    EXPECT_GT(trained[label].size(), texts.size());
    for (const std::string& t : texts) EXPECT_FALSE(trained[label].contains(t)) << label << ": " << t;
    const std::vector<std::string> all(trained[label].begin(), trained[label].end());
    EXPECT_LT(repeated_naively({texts.begin(), texts.end()}, all), 0.03)
        << "by the definition, against every training text";
  }
}

TEST_F(CorpusTest, TwoBuildsGiveTheSameFiles) {
  build();
  const auto first = contents();
  EXPECT_EQ(first.size(), 21u);
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
  // As the rules before wrote it.
  const fs::path manifest = fs::path(options_.output) / "corpus.json";
  auto old = nlohmann::json::parse(read_bytes(manifest));
  old["options"]["rules_version"] = 1;
  write_bytes(manifest, old.dump());
  EXPECT_TRUE(
      throws_with<UsageError>([&] { build(); }, {"version 1 of the rules", "repeats training text", "--force"}));
  options_.output = directory_.path().string();
  EXPECT_TRUE(throws_with<UsageError>([&] { build(); }, {"no corpus", "corpus.json"}));
}

TEST_F(CorpusTest, ForceReplacesACorpus) {
  build();
  options_.bytes_per_domain = 20'000;
  options_.force = true;
  const CorpusReport report = build();
  EXPECT_FALSE(report.reused);
  EXPECT_LE(report.domains[0].train.bytes, 20'000);
  EXPECT_EQ(contents().size(), 21u);
  const fs::path parent = fs::path(options_.output).parent_path();
  EXPECT_EQ(std::distance(fs::directory_iterator(parent), fs::directory_iterator()), 1)
      << "something was left beside the corpus";
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
  const fs::path parent = fs::path(options_.output).parent_path();
  EXPECT_EQ(std::distance(fs::directory_iterator(parent), fs::directory_iterator()), 1)
      << "something was left beside the corpus";
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
