// Data as the program sees them: where sources are looked for, what evaluations and choices say of them, whole files
// verified, names of any bytes.
#include <gtest/gtest.h>

#include <fstream>

#include "data/format/npy.h"
#include "data/loader/loader.h"
#include "runtime/files/files.h"
#include "tests/launch/tiny_program.h"

namespace emox::test {
namespace {

namespace fs = std::filesystem;

class DataProgram : public TinyProgram {
 protected:
  DataProgram() {
    recipe_.train.steps = 2;
    recipe_.train.warmup_steps = 0;
    recipe_.eval.final = true;
  }
  static std::string text_of(const fs::path& path) { return try_read_text(path).text; }
  static void flip_a_token(const fs::path& file) {
    std::fstream f(file, std::ios::in | std::ios::out | std::ios::binary);
    f.seekg(-2, std::ios::end);
    const auto byte = static_cast<char>(f.get() ^ 1);
    f.seekp(-2, std::ios::end);
    f.put(byte);
  }
};

TEST_F(DataProgram, AMovedRunIsEvaluatedAnywhereAndSaysWhatItsDataAre) {
  // Relative sources, found beside the recipe; the command is given elsewhere.
  const std::string label = SourceSpec::parse(recipe_.data.source[0]).label;
  fs::create_directory(directory_.path() / "text");
  for (std::string& s : recipe_.data.source) {
    const SourceSpec spec = SourceSpec::parse(s);
    fs::rename(spec.path, directory_.path() / "text" / spec.label);
    s = spec.label + ":1:text/" + spec.label;
  }
  write();
  expect(emox("train " + path_), 0, {"held-out loss after step 2"});
  EXPECT_NE(text_of(directory_.path() / "run" / "recipe.ini").find(label + ":1:text/" + label), std::string::npos);
  const fs::path away = directory_.path() / "away";
  fs::create_directory(away);
  const auto there = [&](const std::string& arguments) {
    return run_command("cd " + away.string() + " && OMP_NUM_THREADS=1 " EMOX_BINARY " " + arguments);
  };
  const std::string run = (directory_.path() / "run").string();
  const CommandResult as_trained = there("eval --json " + run);
  expect(as_trained, 0, {"\"data\":\"as trained\""});
  expect(there("data verify " + run), 0, {"as the run had it", "0 bad"});

  // Moved together: the place that the run found its data at is gone, theirs beside the run is not.
  fs::create_directories(directory_.path() / "new" / "runs");
  fs::rename(run, directory_.path() / "new" / "runs" / "r");
  fs::rename(directory_.path() / "text", directory_.path() / "new" / "text");
  const std::string moved = (directory_.path() / "new" / "runs" / "r").string();
  const CommandResult elsewhere = there("eval --json " + moved);
  expect(elsewhere, 0, {"\"data\":\"as trained\""});

  // Other held-out text is said; other training text is not chosen by.
  const fs::path source = directory_.path() / "new" / "text" / label;
  flip_a_token(source / "heldout.npy");
  expect(there("eval --json " + moved), 0,
         {"\"data\":\"changed: source " + label, "heldout.npy has other tokens", "warning: data changed"});
  const std::string choose = "select " + moved + " --domain=" + label + " --keep=4 --output=x.json";
  expect(there(choose), 0, {"x.json"});
  flip_a_token(source / "train.npy");
  expect(there(choose + " --force"), 2, {(source / "train.npy").string() + " has other tokens", "--documents"});
  expect(there("data verify " + moved), 1, {"BAD", (source / "train.npy").string(), "2 bad"});
  expect(there("train " + moved + "/recipe.ini --run.dir=" + moved), 2, {"has other tokens"});

  fs::rename(directory_.path() / "new" / "text", directory_.path() / "gone");
  expect(there("eval " + moved), 2,
         {"data.source " + label + ": text/" + label + " does not exist (looked in ", away.string(),
          (directory_.path() / "new").string()});
}

// Held-out text that one job does not find is still the run's.
TEST_F(DataProgram, HeldOutTextThatIsGoneIsSaidWhereTheMeanIs) {
  write();
  expect(train(""), 0, {"held-out loss after step 2"});
  const SourceSpec spec = SourceSpec::parse(recipe_.data.source[0]);
  fs::rename(fs::path(spec.path) / "heldout.npy", directory_.path() / "away.npy");
  const nlohmann::json gone = json_of("eval " + run().string());
  EXPECT_EQ(gone.at("data"), "changed: source " + spec.label + ": held-out text of the run is not there");
  ASSERT_EQ(gone.at("not_evaluated").size(), 1U) << gone;
  EXPECT_EQ(gone.at("not_evaluated").at(0).get<std::string>().find(spec.label), 0U) << gone;
  expect(train("--run.change=train.steps --train.steps=3"), 0, {"not evaluated: " + spec.label});
  std::string last;
  std::ifstream lines(run() / "eval.jsonl");
  for (std::string line; std::getline(lines, line);) last = line;
  const nlohmann::json line = nlohmann::json::parse(last);
  EXPECT_EQ(line.at("not_evaluated").size(), 1U) << line;
}

// Training text that a loss is reported on, by whatever name, and an index that is another file's.
TEST_F(DataProgram, TrainingTextIsNotWhatIsReportedOn) {
  const SourceSpec spec = SourceSpec::parse(recipe_.data.source[0]);
  recipe_.data.source.push_back("copy:1:" + (fs::path(spec.path) / "heldout.npy").string());
  write();
  expect(train(""), 0, {"source copy trains on ", "is the same text as the held-out ", "not one of unseen text"});
  const SourceSpec other = SourceSpec::parse(recipe_.data.source[1]);
  fs::copy(fs::path(other.path) / "train.docs.npy", fs::path(spec.path) / "train.docs.npy",
           fs::copy_options::overwrite_existing);
  expect(train("--run.name=b --run.dir=" + (directory_.path() / "b").string()), 2,
         {"train.docs.npy: ", "do not cover the", "build both files again"});
}

TEST_F(DataProgram, HeldOutTextIsReplacedOnlyOnDemand) {
  recipe_.eval.final = false;
  recipe_.train.steps = 4;
  write();
  const SourceSpec source = SourceSpec::parse(recipe_.data.source[0]);
  const fs::path held_out = fs::path(source.path) / "heldout.npy", away = directory_.path() / "away.npy";
  const auto until = [&](const std::string& step, const std::string& more = "") {
    return emox("train " + path_ + " --run.stop_after_step=" + step + more);
  };
  expect(until("1"), 0, {"stopped after step 1"});
  fs::rename(held_out, away);
  expect(until("2"), 0, {"stopped after step 2"});
  fs::rename(away, held_out);
  flip_a_token(held_out);
  expect(until("3"), 2, {held_out.string() + " has other tokens", "--run.change=data.source"});
  expect(until("3", " --run.change=data.source"), 0, {"held-out text of " + source.label + " replaced"});
  const auto info = json_of("checkpoint info " + (directory_.path() / "run").string());
  ASSERT_EQ(info.at("changes").size(), 1U);
  EXPECT_EQ(info.at("changes")[0].at("key"), "data.source");
  expect(until("4"), 0, {});
}

TEST_F(DataProgram, VerifyReadsWholeFilesAndComparesThemWithTheirRecord) {
  const fs::path file = directory_.path() / "t.npy";
  write_npy(file, std::span<const std::uint16_t>(std::vector<std::uint16_t>(500, 77)));
  const std::string command = "data verify " + file.string();
  expect(emox(command + " --record"), 0, {"ok ", "500 ids of type <u2", "as recorded"});
  EXPECT_EQ(json_of(command).at("files").at(0).at("compared_with_record"), true);
  expect(emox(command + " --vocab-size=77"), 1, {"500 id(s) are not in the vocabulary of 77", "position 0"});
  flip_a_token(file);
  expect(emox(command), 1, {"BAD", "has other tokens", "t.npy.identity.json"});
  write_npy(directory_.path() / "t.docs.npy",
            std::span<const std::int64_t>(std::vector<std::int64_t>{0, 100, 100, 500}));
  expect(emox(command), 1, {"offset 2 is 100"});
  expect(emox("data verify " + (directory_.path() / "no.npy").string()), 2, {"does not exist"});
  expect(emox("data check x"), 2, {"emox data verify"});
}

TEST_F(DataProgram, WhatIsNotWhatItIsTakenForIsRefused) {
  write();
  const fs::path wide = directory_.path() / "wide.bin", book = directory_.path() / "book.txt";
  const std::vector<std::uint32_t> ids(5000, 65);
  std::ofstream(wide, std::ios::binary)
      .write(reinterpret_cast<const char*>(ids.data()), static_cast<std::streamsize>(4 * ids.size()));
  std::ofstream(book) << "It is a truth universally acknowledged, that a file of text is not one of numbers.\n";
  const auto train = [&](const std::string& arguments) { return emox("train " + path_ + " " + arguments); };
  expect(train("--data.source=a:1:" + wide.string()), 2, {"wide.bin", "data.token_type = uint32"});
  expect(train("--data.source=a:1:" + book.string()), 2, {"book.txt is text", "emox corpus --text a="});
  EXPECT_FALSE(fs::exists(directory_.path() / "run"));
  expect(train("--eval.final=false --data.token_type=uint32 --train.steps=1 --data.source=a:1:" + wide.string()), 0,
         {});
}

TEST_F(DataProgram, NamesMayBeOfAnyBytes) {
  // No UTF-8, a quote, a line break, what begins a comment, a colon.
  const std::string odd = "odd \xFF\"\n#:x";
  const fs::path folder = directory_.path() / odd;
  fs::copy(SourceSpec::parse(recipe_.data.source[0]).path, folder, fs::copy_options::recursive);
  recipe_.data.source = {"l\xFE\"#:1:" + folder.string()};
  recipe_.run.dir = (directory_.path() / ("run" + odd)).string();
  write();
  expect(emox("train " + path_), 0, {"held-out loss after step 2"});
  const std::string run = "\"" + (directory_.path() / "run").string() + "odd \xFF\\\"\n#:x\"";  // for the shell
  expect(emox("eval --json " + run), 0, {"\"data\":\"as trained\""});
  expect(emox("data verify --json " + run), 0, {"\"bad\": 0"});
  expect(emox("select " + run +
              " --prompt=\"a\xFF"
              "b\" --keep=4 --json --output=" +
              (directory_.path() / "p.json").string()),
         0, {"provenance"});
  expect(emox("checkpoint info --json " + run), 0, {});
  expect(emox("train " + path_), 0, {"nothing to do"});
}

// A file limit of the shell, and a token file that is cut under a run: an error, not a signal.
TEST_F(DataProgram, FilesThatMayNotGrowOrAreCutAreErrors) {
  recipe_.eval.final = false;
  write();
  expect(run_command("ulimit -f 20; OMP_NUM_THREADS=1 " EMOX_BINARY " train " + path_ + " --checkpoint.async=true"), 1,
         {"File too large"});
  const fs::path file = directory_.path() / "cut.npy";
  write_npy(file, std::span<const std::uint16_t>(std::vector<std::uint16_t>(20000, 65)));
  expect(run_command("OMP_NUM_THREADS=1 " EMOX_BINARY " train " + path_ + " --run.dir=" +
                     (directory_.path() / "c").string() + " --train.steps=1000000 --data.source=a:1:" + file.string() +
                     " & while ! test -s " + (directory_.path() / "c" / "metrics.jsonl").string() +
                     "; do sleep 0.05; done; : > " + file.string() + "; wait $!"),
         1, {"cut.npy", "cut while it is in use", "[rank 0]"});
}

}  // namespace
}  // namespace emox::test
