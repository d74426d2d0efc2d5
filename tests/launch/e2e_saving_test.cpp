// What the commands say about saving: emox bench checkpoint, the memory in emox doctor and emox plan, a run's log.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::CommandResult;

class SavingCommands : public testing::Test {
 protected:
  SavingCommands() : recipe_(test::tiny_recipe(test::make_text_sources(directory_.path()))) {
    recipe_.eval.final = false;
    recipe_.run.dir = (directory_.path() / "run").string();
    recipe_.train.steps = 6;
    recipe_.train.warmup_steps = 1;
    recipe_.checkpoint.every_steps = 2;
    path_ = test::write_recipe(directory_.path() / "tiny.ini", recipe_).string();
  }
  CommandResult emox(const std::string& arguments) const {
    return test::run_command("OMP_NUM_THREADS=1 " EMOX_BINARY " " + arguments);
  }
  json json_of(const std::string& arguments) const {
    const CommandResult r = emox(arguments + " --json");
    EXPECT_EQ(r.exit_code, 0) << r.output;
    return json::parse(r.output.substr(r.output.rfind('\n', r.output.size() - 2) + 1));
  }
  void expect(const CommandResult& r, int code, const std::vector<std::string>& parts) const {
    EXPECT_EQ(r.exit_code, code) << r.output;
    for (const std::string& part : parts)
      EXPECT_NE(r.output.find(part), std::string::npos) << "no '" << part << "' in:\n" << r.output;
  }
  test::TemporaryDirectory directory_;
  Recipe recipe_;
  std::string path_;
};

TEST_F(SavingCommands, BenchCheckpointMeasuresAndCleansUp) {
  const fs::path place = directory_.path() / "bench";
  const std::string command = "bench checkpoint " + path_ + " --repeats=1 --dir=" + place.string();
  const json r = json_of(command);
  for (const char* key : {"save_gb_s", "load_gb_s", "raw_gb_s", "write_gb_s", "stall_s", "copy_floor_s", "commit_s"})
    EXPECT_GT(r.at(key).get<double>(), 0) << key;
  // Weight and two moments of every parameter, 4 bytes each, are saved and loaded again.
  EXPECT_EQ(r.at("bytes"), r.at("load_bytes"));
  EXPECT_EQ(r.at("bytes").get<std::int64_t>() % 12, 0);
  EXPECT_FALSE(fs::exists(place));
  fs::create_directories(place);
  expect(emox(command), 2, {place.string() + " exists", "--dir"});
  expect(emox("bench checkpoint --steps=3"), 2, {"--steps is for another benchmark", "--repeats"});
  expect(emox("bench step --dir=x"), 2, {"--dir is for another benchmark"});
}

TEST_F(SavingCommands, DoctorAndPlanCountTheCopy) {
  const std::string async = " --checkpoint.async=true";
  const json at_once = json_of("doctor " + path_).at("memory"),
             background = json_of("doctor " + path_ + async)["memory"];
  EXPECT_EQ(at_once.at("checkpoint"), 0);
  EXPECT_GT(background.at("checkpoint").get<double>(), 0);
  EXPECT_EQ(background.at("total").get<double>(),
            at_once.at("total").get<double>() + background.at("checkpoint").get<double>());
  EXPECT_GT(background.at("available").get<double>(), background.at("of_this_node").get<double>());
  EXPECT_EQ(json_of("plan " + path_ + async).at("most").at("checkpoint"), background.at("checkpoint"));
  expect(emox("doctor " + path_), 0, {"memory of the fullest rank", "checkpoint.async = false", "available"});
  expect(emox("doctor"), 0, {"hdf5"});
  expect(emox("doctor --checkpoint.async=true"), 2, {"needs a recipe in front of it"});
}

TEST_F(SavingCommands, ARunSaysWhatItSavesAndHowItWentOn) {
  const std::string train = "train " + path_ + " --checkpoint.async=true ";
  expect(emox(train + "--run.stop_after_step=4"), 0,
         {"copy for saving", "step-00000002, written beside training in", "step-00000004, written beside training in"});
  expect(emox(train), 0, {"from step 4: same ranks and placement as it was saved with; rank 0 read", "of 1 shard(s)"});
}

}  // namespace
}  // namespace emox
