// What the commands say about saving: emox bench checkpoint, the memory in emox doctor and emox plan, a run's log.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/launch/tiny_program.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class SavingCommands : public test::TinyProgram {
 protected:
  SavingCommands() {
    recipe_.train.steps = 6;
    recipe_.checkpoint.every_steps = 2;
    write();
  }
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
  expect(emox(train), 0,
         {"from step 4: same ranks and placement as it was saved with; read", "from 2 file(s), each once"});
}

}  // namespace
}  // namespace emox
