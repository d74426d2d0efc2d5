// Runs of the emox program whose checkpoints, disk or numbers go bad: what is said, what is returned, what is left.
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "launch/config/recipe_file.h"
#include "launch/run/model_pieces.h"
#include "runtime/files/files.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using test::CommandResult;

class ProgramRuns : public testing::Test {
 protected:
  ProgramRuns() {
    recipe_ = test::tiny_recipe(test::make_text_sources(directory_.path()));
    recipe_.eval.final = false;
    recipe_.checkpoint.every_steps = 5;
    recipe_.run.dir = run_.string();
    path_ = test::write_recipe(directory_.path() / "tiny.ini", recipe_).string();
  }
  /// `prefix`: shell text before the program.
  CommandResult train(const std::string& overrides, const std::string& prefix = "") const {
    return test::run_command(prefix + " OMP_NUM_THREADS=1 " EMOX_BINARY " train " + path_ + " " + overrides);
  }
  void train_until(std::int64_t step, const std::string& overrides = "") const {
    const CommandResult r = train("--run.stop_after_step=" + std::to_string(step) + " " + overrides);
    ASSERT_EQ(r.exit_code, 0) << r.output;
  }
  void expect(const CommandResult& result, int code, const std::vector<std::string>& parts) const {
    EXPECT_EQ(result.exit_code, code) << result.output;
    for (const std::string& part : parts)
      EXPECT_NE(result.output.find(part), std::string::npos) << "no '" << part << "' in:\n" << result.output;
  }
  fs::path checkpoint(int step) const { return run_ / "checkpoints" / fmt::format("step-{:08}", step); }
  static void flip_byte(const fs::path& file) {
    std::fstream f(file, std::ios::in | std::ios::out | std::ios::binary);
    f.seekg(static_cast<std::streamoff>(fs::file_size(file) / 2));
    const int byte = f.get();
    f.seekp(static_cast<std::streamoff>(fs::file_size(file) / 2));
    f.put(static_cast<char>(byte ^ 1));
  }
  static std::map<std::string, std::string> contents(const fs::path& folder) {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::directory_iterator(folder)) {
      files[entry.path().filename()] = try_read_text(entry.path()).text;
    }
    return files;
  }

  test::TemporaryDirectory directory_;
  const fs::path run_ = directory_.path() / "run";
  Recipe recipe_;
  std::string path_;
};

TEST_F(ProgramRuns, ADamagedCheckpointIsNamedAndThePreviousOneUsed) {
  train_until(10);
  flip_byte(checkpoint(10) / "shard-00000-of-00001.h5");
  expect(train("--run.stop_after_step=12"), 0, {"step-00000010", "shard-00000-of-00001.h5", "resumed", "from step 5"});
  const auto metrics = test::read_metrics(run_);
  ASSERT_EQ(metrics.size(), 12U);
  for (std::size_t i = 0; i < metrics.size(); ++i) EXPECT_EQ(metrics[i].at("step"), i + 1);
  // Without an intact one the run is not begun anew over what is there.
  for (const auto& entry : fs::directory_iterator(run_ / "checkpoints"))
    if (!entry.is_symlink()) flip_byte(entry.path() / "shard-00000-of-00001.h5");
  expect(train(""), 2, {(run_ / "checkpoints").string(), "none of them is intact", "--run.dir"});
  EXPECT_EQ(test::read_metrics(run_).size(), 12U);
}

TEST_F(ProgramRuns, AFinishedRunHasNothingToDo) {
  recipe_.train.steps = 6;
  test::write_recipe(path_, recipe_);
  expect(train(""), 0, {});
  const auto before = contents(run_ / "checkpoints" / "step-00000006");
  expect(train(""), 0, {"nothing to do", "step 6 of 6"});
  EXPECT_EQ(contents(checkpoint(6)), before);
  EXPECT_EQ(test::read_metrics(run_).size(), 6U);
}

// A limit on the size of files stands for the full disk: the writes fail in the same places, with another errno.
TEST_F(ProgramRuns, AFullDiskLosesNothingThatWasSaved) {
  train_until(5);
  const auto before = contents(checkpoint(5));
  const CommandResult full = train("--run.stop_after_step=12", "trap \"\" XFSZ; ulimit -f 100;");
  expect(full, 1, {"step-00000010.tmp/shard-00000-of-00001.h5", "File too large"});
  EXPECT_EQ(contents(checkpoint(5)), before);
  EXPECT_FALSE(fs::exists(checkpoint(10)));
  EXPECT_FALSE(fs::exists(checkpoint(10).string() + ".tmp"));
  expect(train("--run.stop_after_step=12"), 0, {"resumed", "from step 5"});
  EXPECT_EQ(test::read_metrics(run_).size(), 12U);
}

TEST_F(ProgramRuns, ANaNIsTracedToItsTensor) {
  train_until(5);
  const std::string poisoned = "model.layers.1.mlp.experts.3.up_proj.weight";
  {
    Context ctx;
    const auto comm = make_self_communicator();
    LanguageModel model(recipe_.model, ctx, true);
    ProcessMesh mesh(*comm, 1);
    const Optimizer optimizer(ctx, model.parameters(), mesh);
    const auto pieces = owned_pieces(optimizer);
    const Manifest m = load_checkpoint(*comm, checkpoint(5), pieces);
    for (const CheckpointPiece& p : pieces)
      if (p.name == poisoned && p.role == "weight") p.view.data<float>()[7] = std::numeric_limits<float>::quiet_NaN();
    CheckpointMeta meta;
    meta.tokens = m.tokens, meta.seed = m.seed, meta.recipe = m.recipe, meta.extra = m.extra;
    meta.placement = m.placement, meta.mesh = m.mesh;
    save_checkpoint(*comm, run_ / "checkpoints", 5, pieces, meta);
  }
  const auto before = contents(checkpoint(5));
  const CommandResult r = train("");
  expect(
      r, 1,
      {"step 6: loss nan", "gradient norm", poisoned, "Nothing was updated", "only checkpoint", "train.learning_rate"});
  EXPECT_EQ(contents(checkpoint(5)), before);
  EXPECT_FALSE(fs::exists(checkpoint(10)));
}

TEST_F(ProgramRuns, ADivergedRunStopsBeforeItSavesNonsense) {
  recipe_.train.warmup_steps = 0, recipe_.train.clip_norm = 0, recipe_.train.schedule = ScheduleKind::Constant;
  recipe_.train.learning_rate = 10, recipe_.train.weight_decay = 10;  // each step multiplies the weights by -99
  recipe_.run.dir = (directory_.path() / "diverging").string();
  recipe_.checkpoint.every_steps = 2;
  test::write_recipe(path_, recipe_);
  expect(train(""), 1,
         {"step ", "loss ", "gradient norm", "the first is model.", "checkpoint, of step ", "train.learning_rate"});
  // The last good checkpoint can be resumed from, and ends the same way.
  expect(train(""), 1, {"resumed", "Nothing was updated in this step"});
}

}  // namespace
}  // namespace emox
