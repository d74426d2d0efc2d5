// The program on a tiny recipe, in a directory of its own.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/files/files.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox::test {

class TinyProgram : public ::testing::Test {
 protected:
  TinyProgram() : recipe_(tiny_recipe(make_text_sources(directory_.path()))) {
    recipe_.eval.final = false;
    recipe_.run.dir = (directory_.path() / "run").string();
    recipe_.train.warmup_steps = 1;
  }
  /// Once the recipe is as the test wants it.
  void write() { path_ = write_recipe(directory_.path() / "tiny.ini", recipe_).string(); }

  CommandResult emox(const std::string& arguments) const {
    return run_command("OMP_NUM_THREADS=1 " EMOX_BINARY " " + arguments);
  }
  CommandResult train(const std::string& more) const { return emox("train " + path_ + " " + more); }
  std::filesystem::path run() const { return recipe_.run.dir; }
  static std::string text(const std::filesystem::path& file) { return try_read_text(file).text; }
  /// What a command prints with --json on its last line.
  nlohmann::json json_of(const std::string& arguments) const {
    const CommandResult r = emox(arguments + " --json");
    EXPECT_EQ(r.exit_code, 0) << r.output;
    return nlohmann::json::parse(r.output.substr(r.output.rfind('\n', r.output.size() - 2) + 1));
  }
  void expect(const CommandResult& r, int code, const std::vector<std::string>& parts) const {
    EXPECT_EQ(r.exit_code, code) << r.output;
    for (const std::string& part : parts)
      EXPECT_NE(r.output.find(part), std::string::npos) << "no '" << part << "' in:\n" << r.output;
  }

  TemporaryDirectory directory_;
  Recipe recipe_;
  std::string path_;
};

}  // namespace emox::test
