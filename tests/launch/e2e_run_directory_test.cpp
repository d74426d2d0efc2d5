// What `emox train` does to files that are there already: a run's own history, and what other people keep.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/launch/tiny_program.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

class ProgramDirectory : public test::TinyProgram {
 protected:
  ProgramDirectory() {
    recipe_.train.steps = 4;
    recipe_.checkpoint.every_steps = 2;
    write();
  }
  /// The only file of this name that was moved aside.
  fs::path aside(const std::string& name) const {
    fs::path found;
    for (const auto& entry : fs::directory_iterator(run()))
      if (entry.path().filename().string().starts_with(name + ".until-")) {
        EXPECT_TRUE(found.empty()) << found << " and " << entry.path();
        found = entry.path();
      }
    EXPECT_FALSE(found.empty()) << name;
    return found;
  }
};

TEST_F(ProgramDirectory, HistoryIsKeptByAStartWithoutACheckpoint) {
  recipe_.eval.every_steps = 2, recipe_.eval.final = true;
  write();
  expect(train(""), 0, {"step 4/4"});
  const std::string metrics = text(run() / "metrics.jsonl"), evaluations = text(run() / "eval.jsonl");
  ASSERT_FALSE(evaluations.empty());
  const auto first = nlohmann::json::parse(text(run() / "run.json"))[0];
  fs::remove_all(run() / "checkpoints");
  expect(train("--run.stop_after_step=1"), 0,
         {"4 record(s) of steps after 0, and 0 line(s) that cannot be read, are now in", "stopped after step 1"});
  EXPECT_EQ(text(aside("metrics.jsonl")), metrics);
  EXPECT_EQ(text(aside("eval.jsonl")), evaluations);
  EXPECT_EQ(test::read_metrics(run()).size(), 1U);
  const auto jobs = nlohmann::json::parse(text(run() / "run.json"));
  ASSERT_EQ(jobs.size(), 2U);
  EXPECT_EQ(jobs[0], first);
  EXPECT_EQ(jobs[1].at("from_step"), 0);
}

TEST_F(ProgramDirectory, OneLineThatCannotBeReadTakesNoOtherWithIt) {
  expect(train("--run.stop_after_step=3"), 0, {"step 3"});
  std::ofstream(run() / "metrics.jsonl", std::ios::app) << "x\n{\"step\": 3, \"to";
  expect(train(""), 0, {"0 record(s) of steps after 3, and 2 line(s) that cannot be read"});
  EXPECT_EQ(text(aside("metrics.jsonl")), "x\n{\"step\": 3, \"to");
  EXPECT_EQ(test::read_metrics(run()).size(), 4U);
}

TEST_F(ProgramDirectory, WhatCannotBeReadEndsTheStartAndNothingElse) {
  expect(train("--run.stop_after_step=3"), 0, {"step 3"});
  const std::string metrics = text(run() / "metrics.jsonl");
  for (const char* name : {"run.json", "recipe.ini", "metrics.jsonl", "eval.jsonl"}) {
    const fs::path file = run() / name, kept = directory_.path() / name;
    fs::rename(file, kept);
    fs::create_directory(file);
    expect(train(""), 1, {"cannot read " + file.string(), "directory"});
    fs::remove(file);
    fs::rename(kept, file);
    EXPECT_EQ(text(run() / "metrics.jsonl"), metrics);
  }
  // What a link leads to is somebody else's.
  for (const char* name : {"metrics.jsonl", "eval.jsonl"}) {
    const fs::path notes = directory_.path() / "notes.txt", link = run() / name;
    std::ofstream(notes) << "mine\n";
    const bool there = fs::exists(link);
    if (there) fs::rename(link, directory_.path() / name);
    fs::create_symlink(notes, link);
    expect(train(""), 1, {link.string() + " is a symbolic link: move it away"});
    EXPECT_EQ(text(notes), "mine\n");
    fs::remove(link);
    if (there) fs::rename(directory_.path() / name, link);
  }
  // A pipe has no end to be waited for.
  const fs::path manifest = run() / "checkpoints" / "step-00000003" / "manifest.json";
  fs::rename(manifest, directory_.path() / "manifest.json");
  ASSERT_EQ(mkfifo(manifest.c_str(), 0600), 0);
  expect(emox("checkpoint verify " + run().string()), 1, {"manifest.json"});
  fs::remove(manifest);
  fs::rename(directory_.path() / "manifest.json", manifest);
  // Not understood is not empty, either.
  std::ofstream(run() / "run.json") << "[{\"emox\": ";
  expect(train(""), 0, {"cannot be understood and begins anew"});
  EXPECT_EQ(text(aside("run.json")), "[{\"emox\": ");
}

TEST_F(ProgramDirectory, FilesOfOthersAreLeftAlone) {
  const fs::path exp = directory_.path() / "exp";
  fs::create_directory(exp);
  const std::string own = "# note\n" + text(path_);
  std::ofstream(exp / "recipe.ini") << own;
  const std::string recipe = (exp / "recipe.ini").string(), here = "--run.dir=" + exp.string();
  expect(emox("train " + recipe + " " + here), 2,
         {exp.string() + " is not a run of emox", "holds recipe.ini", here + "/run", "move those files away"});
  EXPECT_EQ(text(exp / "recipe.ini"), own);
  EXPECT_EQ(std::distance(fs::directory_iterator(exp), {}), 1);
  expect(emox("train " + recipe + " " + here + "/run --run.stop_after_step=1"), 0, {"stopped after step 1"});
  EXPECT_EQ(text(exp / "recipe.ini"), own);
  // A run's own recipe.ini, edited by hand while another one is used: kept.
  const fs::path file = exp / "run" / "recipe.ini";
  const std::string edited = text(file) + "# mine\n[extra\n";
  std::ofstream(file) << edited;
  expect(train(here + "/run --run.stop_after_step=2"), 0, {"emox did not write it so: it is kept as"});
  bool kept = false;
  for (const auto& entry : fs::directory_iterator(exp / "run"))
    kept = kept || (entry.is_regular_file() && text(entry.path()) == edited);
  EXPECT_TRUE(kept);
}

TEST_F(ProgramDirectory, ARenamedRunIsWhereItIs) {
  expect(train("--run.stop_after_step=2"), 0, {"stopped after step 2"});
  const fs::path moved = directory_.path() / "moved";
  fs::rename(run(), moved);
  expect(emox("train " + (moved / "recipe.ini").string() + " --run.stop_after_step=4"), 0,
         {"resumed " + moved.string() + " from step 2"});
  EXPECT_FALSE(fs::exists(run()));
  EXPECT_EQ(test::read_metrics(moved).size(), 4U);
  // Another directory that was written into the file is obeyed.
  std::string content = text(moved / "recipe.ini");
  content.replace(content.find("dir = " + moved.string()), 6 + moved.string().size(),
                  "dir = " + (directory_.path() / "new").string());
  std::ofstream(moved / "recipe.ini") << content;
  expect(emox("train " + (moved / "recipe.ini").string() + " --run.stop_after_step=1"), 0, {"stopped after step 1"});
  EXPECT_EQ(test::read_metrics(directory_.path() / "new").size(), 1U);
}

TEST_F(ProgramDirectory, OutputThatCannotBePrintedIsAnError) {
  const std::vector<std::string> commands = {"--help", "train " + path_ + " --print-config",
                                             "plan " + path_ + " --ranks 1 --json"};
  for (const std::string& command : commands) {
    const test::CommandResult r = test::run_command(EMOX_BINARY " " + command + " 2>&1 >/dev/full");
    EXPECT_EQ(r.exit_code, 1) << command;
    EXPECT_NE(r.output.find("emox: what the command printed could not be written"), std::string::npos) << r.output;
  }
}

}  // namespace
}  // namespace emox
