#include "data/corpus/text_corpus.h"

#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "data/corpus/manifest.h"
#include "data/corpus/place.h"
#include "data/corpus/text_files.h"
#include "data/format/token_file.h"
#include "data/loader/heldout.h"
#include "data/loader/loader.h"
#include "runtime/core/idx.h"
#include "runtime/telemetry/log.h"
#include "tests/data/data_support.h"

namespace emox::test {
namespace {
namespace fs = std::filesystem;
using Texts = std::vector<std::string>;

void write_gz(const fs::path& path, const std::string& text) {
  const gzFile file = gzopen(path.c_str(), "wb");
  gzwrite(file, text.data(), static_cast<unsigned>(text.size()));
  gzclose(file);
}

class TextCorpusTest : public ::testing::Test {
 protected:
  void SetUp() override {
    log_.set_console(false);
    fs::create_directories(in_);
    options_.output = (directory_.path() / "out" / "corpus").string();
  }
  CorpusReport build(const std::string& label = "notes") {
    options_.texts = {{label, {in_.string()}}};
    return build_text_corpus(options_, log_);
  }
  /// Documents and the names of their sources.
  std::vector<std::pair<std::string, std::string>> read(const std::string& part, const std::string& label = "notes") {
    const fs::path directory = fs::path(options_.output) / label;
    std::vector<std::string> names;
    std::ifstream lines(directory / kFileNames);
    for (std::string line; std::getline(lines, line);) names.push_back(line);
    const auto tokenizer = make_tokenizer("byte");
    const TokenFile file(directory / (part + ".npy"), tokenizer->vocab_size());
    const auto offsets = read_document_index(file.path(), file.size());
    const auto sources = read_npy_integers(document_files_path(file.path()));
    std::vector<std::pair<std::string, std::string>> documents;
    for (std::size_t i = 1; i < offsets.size(); ++i) {
      std::vector<std::int32_t> ids(idx(offsets[i] - offsets[i - 1]));
      file.read(offsets[i - 1], static_cast<std::int64_t>(ids.size()), ids.data());
      EXPECT_EQ(ids.back(), kByteEos);
      documents.emplace_back(tokenizer->decode(ids), names.at(idx(sources.at(i - 1))));
    }
    return documents;
  }
  std::map<std::string, std::string> all_parts(const std::string& label = "notes") {
    std::map<std::string, std::string> part_of_text;
    for (const char* part : {"train", "tune", "heldout"})
      for (const auto& [text, name] : read(part, label))
        EXPECT_TRUE(part_of_text.emplace(text, part).second) << "twice: " << name;
    return part_of_text;
  }
  Texts beside_output() const {
    Texts names;
    const fs::path parent = fs::path(options_.output).parent_path();
    if (fs::exists(parent))
      for (const auto& e : fs::directory_iterator(parent)) names.push_back(e.path().filename().string());
    return names;
  }

  TemporaryDirectory directory_;
  fs::path in_ = directory_.path() / "in";
  Log log_;
  TextCorpusOptions options_;
};

TEST_F(TextCorpusTest, JsonLinesGiveADocumentALineAndSayWhatWasDropped) {
  std::string lines = "\n";
  Texts texts;
  for (int i = 0; i < 600; ++i) {
    texts.push_back(made_text(i, 200) + "\r\n\t\"ä\" \\ end ");
    lines += nlohmann::json{{"id", i}, {"text", texts.back()}}.dump() + (i % 2 == 0 ? "\n" : "\r\n");
  }
  lines += R"({"text": 5}
not JSON
["text"]
{"other": "x"}
{"text": "short"}
)" + nlohmann::json{{"text", texts[3]}}.dump() +
           "\n" + R"({"text": "zero \u0000 byte)" + made_text(999, 100) + "\"}\n{\"text\": \"\xFF" +
           made_text(998, 100) + "\"}";
  write_bytes(in_ / "a.jsonl", lines);
  const CorpusReport report = build();
  const DomainReport& d = report.domains.at(0);
  const auto parts = all_parts();
  EXPECT_EQ(parts.size(), 600u);
  for (const std::string& t : texts) EXPECT_TRUE(parts.contains(t)) << "changed or lost: " << t;
  EXPECT_EQ(d.train.documents + d.tune.documents + d.held_out.documents, 600);
  EXPECT_GE(d.tune.documents, 20);
  EXPECT_GE(d.held_out.documents, 20);
  EXPECT_EQ(d.text.no_text, 5) << "one of them is no UTF-8";
  EXPECT_EQ(d.text.binary, 1);
  EXPECT_EQ(d.too_short, 1);
  EXPECT_EQ(d.duplicates, 1);
  const Texts dropped = dropped_lines(d);
  EXPECT_NE(std::find(dropped.begin(), dropped.end(), "1 documents with a zero byte"), dropped.end());
  EXPECT_EQ(read("heldout")[0].second.substr(0, 8), "a.jsonl#");

  // What was built is what training and evaluation read.
  const std::vector<SourceSpec> sources = {SourceSpec::parse(source_lines(report).at(0))};
  const auto tokenizer = make_tokenizer("byte");
  const HeldOutSet held = read_held_out(sources, 1000, *tokenizer);
  EXPECT_EQ(held.sources.at(0).bytes, d.held_out.bytes);
  EXPECT_EQ(held.sources.at(0).files.size(), held.sources[0].documents.size());
  EXPECT_EQ(Loader({sources, 64, 4, tokenizer->vocab_size(), 1}).read(1, 0, 4).size(), 4u);

  EXPECT_TRUE(build().reused);
  write_bytes(in_ / "b.txt", made_text(5000, 300));
  EXPECT_TRUE(throws_with<UsageError>([&] { build(); }, {"other files", "--force"}));
  options_.force = true;
  EXPECT_FALSE(build().reused);
  EXPECT_EQ(all_parts().size(), 601u);
  EXPECT_EQ(beside_output(), (Texts{"corpus"}));
}

/// What the names beside the output hold may be the user's; only what a build that was killed has marked goes.
// What somebody put beside the files of a corpus does not go with them, and no label takes the manifest's name.
TEST_F(TextCorpusTest, BuildingAgainRemovesOnlyWhatABuildMade) {
  for (int i = 0; i < 40; ++i) write_bytes(in_ / fmt::format("{}.txt", i), made_text(i, 400));
  build();
  options_.force = true;
  build();
  for (const char* name : {"own.txt", "notes/own.txt"}) {
    const fs::path own = fs::path(options_.output) / name;
    std::ofstream(own) << "mine";
    EXPECT_TRUE(throws_with<UsageError>([&] { build(); }, {own.string(), "no build has made"}));
    EXPECT_TRUE(fs::exists(own));
    fs::remove(own);
  }
  EXPECT_TRUE(throws_with<UsageError>([&] { (void)LabelledText::parse("corpus.json=x"); }, {"cannot be used"}));
}

// One JSON value over several lines is not text.
TEST_F(TextCorpusTest, JsonThatIsNoJsonLinesIsDroppedAndCounted) {
  for (int i = 0; i < 40; ++i) write_bytes(in_ / fmt::format("{}.txt", i), made_text(i, 400));
  write_bytes(in_ / "b.json", "{\n \"text\": \"" + made_text(99, 3000) + "\"\n}\n");
  EXPECT_EQ(build().domains.front().text.no_text, 1);
  EXPECT_EQ(all_parts().size(), 40U);
}

TEST_F(TextCorpusTest, OnlyItsOwnLeftoversAreRemoved) {
  write_bytes(in_ / "a.jsonl", [] {
    std::string lines;
    for (int i = 0; i < 100; ++i) lines += fmt::format("{{\"text\": \"{}\"}}\n", made_text(i, 200));
    return lines;
  }());
  const std::string output = options_.output;
  const Texts users = {output + ".old", output + ".partial", output + ".partial-abcdef", output + ".partial-ghijkl"};
  for (const std::string& directory : users) {
    fs::create_directories(fs::path(directory) / "content");
    write_bytes(fs::path(directory) / "content" / "mine", "kept");
  }
  write_bytes(fs::path(users[3]) / "emox-build", "not its mark");
  write_bytes(output + ".lock", "kept");
  const std::size_t before = beside_output().size();
  const auto half_a_build = [&](const std::function<void()>& then) {
    build_in_place(
        output, true, nlohmann::json::object(),
        [&](const fs::path& work, CorpusReport&) {
          write_bytes(work / "half", "half a file");
          then();
        },
        log_);
  };
  const pid_t child = ::fork();
  if (child == 0) {
    try {
      half_a_build([] { ::_exit(7); });  // as if killed: no destructor runs
    } catch (...) {
    }
    ::_exit(1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_EQ(WEXITSTATUS(status), 7);
  EXPECT_EQ(beside_output().size(), before + 1) << "no leftover to clean up";
  for (const bool force : {false, true}) {
    options_.force = force;
    EXPECT_FALSE(build().reused);
    EXPECT_EQ(all_parts().size(), 100u);
    EXPECT_EQ(beside_output().size(), before + 1) << "the corpus instead of the leftover";
    for (const std::string& directory : users)
      EXPECT_EQ(read_bytes(fs::path(directory) / "content" / "mine"), "kept") << directory;
    EXPECT_EQ(read_bytes(output + ".lock"), "kept");
  }
  // The work directory of a running build is no leftover: another with the same name beside it leaves it alone.
  const WorkDirectory running(output);
  { const WorkDirectory other(output); }
  EXPECT_TRUE(fs::exists(running.path()));
}

TEST_F(TextCorpusTest, ManyFilesAreDividedAsAWhole) {
  // Every eighth has several documents, every third ends like the others.
  const auto text_of_file = [](int i) {
    return made_text(i, i % 8 == 0 ? 70'000 : 3'000) + (i % 3 == 0 ? made_text(-7, 1'000) : "");
  };
  for (int i = 0; i < 128; ++i) {
    const std::string text = text_of_file(i);
    const std::string name = fmt::format("{}.txt{}", i, i % 2 == 0 ? "" : ".gz");
    fs::create_directories(in_ / std::to_string(i % 4));
    i % 2 == 0 ? write_bytes(in_ / std::to_string(i % 4) / name, text)
               : write_gz(in_ / std::to_string(i % 4) / name, text);
  }
  const DomainReport d = build().domains.at(0);
  EXPECT_EQ(d.text.files, 128);
  EXPECT_GT(d.repeated, 0) << "a third of the files end alike";
  EXPECT_LT(d.tune.in_training_text, 0.03);
  EXPECT_LT(d.held_out.in_training_text, 0.03);
  std::map<std::string, std::string> part_of_file, whole;
  for (const char* part : {"train", "tune", "heldout"}) {
    for (const auto& [text, name] : read(part)) {
      EXPECT_EQ(part_of_file.emplace(name, part).first->second, part) << name << " is in two parts";
      EXPECT_LE(text.size(), kMaxTextBytes);
      if (part == std::string("train")) whole[name] += text;
    }
  }
  EXPECT_EQ(static_cast<std::int64_t>(whole.size()), d.train.sources);
  for (const auto& [name, text] : whole) {
    const int number = std::stoi(name.substr(2));
    EXPECT_EQ(text, text_of_file(number)) << name;
  }
}

TEST_F(TextCorpusTest, AnyBytesInNamesAndFilesAreTakenOrNamed) {
  const std::string name = "\xFF\n\"\\ x";
  fs::create_directories(in_ / name);
  for (int i = 0; i < 3; ++i) write_bytes(in_ / name / fmt::format("{}.txt", i), made_text(i, 700'000));
  std::string noise;
  for (std::uint32_t i = 0; i < 300'000; ++i) noise += static_cast<char>(1 + (i * 7919 + i / 256) % 255);
  write_bytes(in_ / "latin1", made_text(50, 5'000) + "\xE4 " + made_text(51, 100));
  write_bytes(in_ / "noise", noise + std::string(200'000, '\x80'));
  write_bytes(in_ / "program", std::string("\x7F"
                                           "ELF\0\0",
                                           6) +
                                   made_text(52, 300'000));
  write_bytes(in_ / "later.txt", "\xEF\xBB\xBF" + made_text(53, 70'000) + std::string(1, '\0') + made_text(54, 70'000));
  write_bytes(in_ / "empty", "");
  write_gz(in_ / "cut.txt.gz", made_text(55, 400'000));
  fs::resize_file(in_ / "cut.txt.gz", fs::file_size(in_ / "cut.txt.gz") / 2);
  write_bytes(in_ / "config.json", "{\"a\": 1,\n" + made_text(56, 500));
  write_bytes(in_ / "lines.json", nlohmann::json{{"text", made_text(57, 100)}}.dump() + "\n");
  fs::create_symlink(in_ / "latin1", in_ / "link");
  const CorpusReport report = build();
  const DomainReport& d = report.domains.at(0);
  EXPECT_EQ(d.text.binary_files, 1);
  EXPECT_EQ(d.text.binary, 1);
  EXPECT_EQ(d.text.damaged_files, 1);
  EXPECT_EQ(d.text.links, 1);
  EXPECT_GE(d.text.not_utf8, 7);
  const auto parts = all_parts();
  EXPECT_TRUE(parts.contains("{\"a\": 1,\n" + made_text(56, 500))) << "a .json file without `text` is text";
  EXPECT_TRUE(parts.contains(made_text(57, 100)));
  EXPECT_NE(read_bytes(fs::path(options_.output) / "notes" / kFileNames).find(R"(\xFF\x0A"\x5C x/0.txt#0)"),
            std::string::npos);
  EXPECT_TRUE(std::any_of(parts.begin(), parts.end(), [](const auto& p) { return p.first.starts_with("000053 "); }))
      << "without the byte order mark";
}

TEST_F(TextCorpusTest, WhatCannotBeBuiltLeavesNothingBehind) {
  for (const char* text :
       {"", "notes", "=x", "notes=", "a/b=x", ".=x", "..=x", "a:b=x", "a b=x", "\xFF=x", "a\nb=x", "-a=x"})
    EXPECT_THROW(LabelledText::parse(text), UsageError) << text;
  EXPECT_EQ(LabelledText::parse("a=b=c").paths, (Texts{"b=c"}));
  options_.texts = {{"x", {(in_ / "gone\xFF").string()}}};
  EXPECT_TRUE(throws_with<UsageError>([&] { build_text_corpus(options_, log_); }, {"nothing at", "gone"}));
  EXPECT_TRUE(throws_with<UsageError>([&] { build(); }, {"no file in"}));
  options_.texts = {{"x", {"/dev/null"}}};
  EXPECT_TRUE(throws_with<UsageError>([&] { build_text_corpus(options_, log_); }, {"neither a file nor"}));
  write_bytes(in_ / "a.txt", made_text(1, 500));
  EXPECT_TRUE(throws_with<UsageError>([&] { build(); }, {"notes", "too few"}));
  write_bytes(in_ / "a.txt", "short");
  EXPECT_TRUE(throws_with<UsageError>([&] { build(); }, {"no text is left", "1 documents that are too short"}));
  EXPECT_EQ(beside_output(), Texts{});
  fs::create_directories(options_.output);
  write_bytes(fs::path(options_.output) / "mine", "x");
  EXPECT_TRUE(throws_with<UsageError>([&] { build(); }, {"no corpus"}));
  write_bytes(fs::path(options_.output) / kManifestName, "{\"format\": 5}");
  EXPECT_TRUE(throws_with<UsageError>([&] { build(); }, {"not the manifest of a corpus"}));
  write_bytes(fs::path(options_.output) / kManifestName, R"({"format": "emox-corpus-1", "options": 3, "domains": 4})");
  EXPECT_TRUE(throws_with<UsageError>([&] { build(); }, {"version ? of the rules"}));
}

TEST_F(TextCorpusTest, LabelsShareOneTrainingTextAndPathsOfALabelAreOne) {
  fs::create_directories(in_ / "a");
  fs::create_directories(in_ / "b");
  std::string a, b;
  for (int i = 0; i < 500; ++i) {
    a += nlohmann::json{{"text", made_text(i, 300)}}.dump() + "\n";
    // What the other label has, with other words at its end, or (every fifth) the same.
    b += nlohmann::json{{"text",
                         made_text(i % 2 == 0 ? i : 1000 + i, 200) + (i % 5 == 0 ? "" : made_text(2000 + i, 90))}}
             .dump() +
         "\n";
  }
  write_bytes(in_ / "a" / "1.jsonl", a);
  write_bytes(in_ / "b" / "1.jsonl", b);
  write_bytes(in_ / "b" / "2.jsonl", a);
  options_.texts = {{"a", {(in_ / "a").string()}},
                    {"b", {(in_ / "b" / "1.jsonl").string()}},
                    {"b", {(in_ / "b" / "2.jsonl").string()}}};
  const CorpusReport report = build_text_corpus(options_, log_);
  ASSERT_EQ(report.domains.size(), 2u);
  EXPECT_EQ(report.domains[1].text.files, 2);
  EXPECT_EQ(report.domains[1].duplicates, 500) << "of the other label";
  EXPECT_GT(report.domains[1].repeated, 0);
  Texts train;
  for (const char* label : {"a", "b"})
    for (const auto& [text, name] : read("train", label)) train.push_back(text);
  for (const char* label : {"a", "b"}) {
    for (const char* part : {"tune", "heldout"}) {
      for (const auto& [text, name] : read(part, label)) {
        for (const std::string& t : train)
          EXPECT_EQ(t.find(text.substr(0, 80)), std::string::npos) << label << " " << part << ": " << text;
      }
    }
  }
}

}  // namespace
}  // namespace emox::test
