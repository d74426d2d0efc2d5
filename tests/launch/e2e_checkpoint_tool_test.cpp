// `emox checkpoint` on the checkpoints of a small run.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "launch/checkpoint_tool/checkpoint_tool.h"
#include "launch/config/recipe_file.h"
#include "launch/run/lease.h"
#include "parallel/checkpoint/checkpoint.h"
#include "parallel/checkpoint/hdf5_file.h"
#include "parallel/checkpoint/layout.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "tests/support/checkpoints.h"
#include "tests/support/ranks.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::CommandResult;

class CheckpointTool : public testing::Test {
 protected:
  /// Trained once; every test has a copy of its own.
  static void SetUpTestSuite() {
    trained_ = new test::TemporaryDirectory;
    Recipe r = test::tiny_recipe(test::make_text_sources(trained_->path()));
    r.eval.final = false;
    r.checkpoint.every_steps = 2, r.checkpoint.keep_last = 9;
    r.run.dir = (trained_->path() / "run").string();
    const fs::path recipe = test::write_recipe(trained_->path() / "tiny.ini", r);
    const CommandResult trained =
        test::run_command("OMP_NUM_THREADS=1 " EMOX_BINARY " train --run.stop_after_step=6 " + recipe.string());
    ASSERT_EQ(trained.exit_code, 0) << trained.output;
  }
  static void TearDownTestSuite() {
    delete trained_;
    trained_ = nullptr;
  }
  CheckpointTool() {
    fs::copy(trained_->path() / "run", run_, fs::copy_options::recursive | fs::copy_options::copy_symlinks);
  }
  static CommandResult tool(const std::string& arguments) {
    return test::run_command("OMP_NUM_THREADS=1 " EMOX_BINARY " checkpoint " + arguments);
  }
  static void expect(const CommandResult& result, int code, const std::vector<std::string>& parts) {
    EXPECT_EQ(result.exit_code, code) << result.output;
    for (const std::string& part : parts)
      EXPECT_NE(result.output.find(part), std::string::npos) << "no '" << part << "' in:\n" << result.output;
  }
  static void expect_screen(const std::string& text) {
    std::istringstream in(text);
    int lines = 0;
    for (std::string line; std::getline(in, line); ++lines) EXPECT_LE(line.size(), 80U) << line;
    EXPECT_LE(lines, 24) << text;
  }
  static json json_of(const CommandResult& result) {
    json j = json::parse(result.output, nullptr, false);
    EXPECT_TRUE(j.is_object()) << result.output;
    return j;
  }
  fs::path checkpoint(int step) const { return run_ / "checkpoints" / fmt::format("step-{:08}", step); }
  static void flip_byte(const fs::path& file) {
    std::fstream f(file, std::ios::in | std::ios::out | std::ios::binary);
    const auto middle = static_cast<std::streamoff>(fs::file_size(file) / 2);
    f.seekg(middle);
    const int byte = f.get();
    f.seekp(middle);
    f.put(static_cast<char>(byte ^ 1));
  }
  fs::path shard(int step) const { return checkpoint(step) / "shard-00000-of-00001.h5"; }
  /// The checkpoint's arrays, in memory.
  struct Arrays {
    Manifest manifest;
    std::vector<Tensor> memory;
    std::vector<CheckpointPiece> pieces;
  };
  Arrays load(int step) const {
    Arrays all;
    all.manifest = read_manifest(checkpoint(step));
    for (const ManifestTensor& t : all.manifest.tensors) {
      all.memory.emplace_back(Device{}, t.dtype, t.shape);
      all.pieces.push_back({t.name, t.role, t.shape, 0, t.shape.numel(), all.memory.back()});
    }
    load_checkpoint(*make_self_communicator(), checkpoint(step), all.pieces);
    return all;
  }
  /// Saves them in another directory, dealt out over so many ranks.
  fs::path save(const Arrays& all, const std::string& name, int ranks) const {
    const fs::path path = directory_.path() / name;
    test::run_ranks(ranks, [&](Communicator& comm) {
      CheckpointMeta meta;
      meta.tokens = all.manifest.tokens, meta.recipe = all.manifest.recipe, meta.extra = all.manifest.extra;
      meta.placement = all.manifest.placement, meta.mesh = all.manifest.mesh;
      save_checkpoint(comm, path, all.manifest.step, test::divide_among_ranks(all.pieces, comm.rank(), ranks), meta);
    });
    return path / step_directory_name(all.manifest.step);
  }

  static test::TemporaryDirectory* trained_;
  test::TemporaryDirectory directory_;
  const fs::path run_ = directory_.path() / "run";
};

test::TemporaryDirectory* CheckpointTool::trained_ = nullptr;

TEST_F(CheckpointTool, InfoFitsAScreenAndItsNumbersAreRight) {
  const CommandResult text = tool("info " + run_.string());
  expect(text, 0,
         {checkpoint(6).string(), "step 6, 4608 tokens, seed 3; recipe tiny", "layers.*.mlp.experts.*.up_proj",
          "layers.*.mlp.experts.8.up_proj", "2x8", "vectors", "recent gradients"});
  std::string screen = text.output;
  screen.replace(screen.find(run_.string()), run_.string().size(), "runs/quickstart");
  expect_screen(screen);

  const json info = json_of(tool("info --json --all " + run_.string()));
  EXPECT_EQ(info.at("step"), 6);
  EXPECT_EQ(info.at("checkpoint"), checkpoint(6).string());
  const Arrays arrays = load(6);
  ASSERT_EQ(info.at("tensors").size(), arrays.pieces.size());
  std::int64_t parameters = 0;
  std::map<std::string, double> norms;
  for (const CheckpointPiece& p : arrays.pieces) {
    if (p.role == "weight") parameters += p.shape.numel();
    double squares = 0;
    for (const float x : test::values_of<float>(p.view)) squares += static_cast<double>(x) * x;
    norms[p.name + p.role] = std::sqrt(squares);
  }
  EXPECT_EQ(info.at("parameters"), parameters);
  for (const json& t : info.at("tensors")) {
    const double want = norms.at(t.at("name").get<std::string>() + t.at("role").get<std::string>());
    EXPECT_NEAR(t.at("l2").get<double>(), want, 1e-8 * want) << t;  // printed with 9 digits
  }
  const json quick = json_of(tool("info --json --no-norms " + checkpoint(4).string()));
  EXPECT_EQ(quick.at("step"), 4);
  EXPECT_FALSE(quick.at("families").at(0).contains("rms"));
  expect(tool("info --all " + run_.string()), 0, {"model.layers.1.mlp.experts.7.up_proj.weight (exp_avg_sq)"});
}

TEST_F(CheckpointTool, InfoShowsADeadAndAnExplodingExpert) {
  const Arrays arrays = load(6);
  for (const CheckpointPiece& p : arrays.pieces)
    for (float& x : std::span(p.view.data<float>(), idx(p.view.numel()))) {
      if (p.name.starts_with("model.layers.0.mlp.experts.5.") && p.role == "exp_avg_sq") x = 0;
      if (p.name.starts_with("model.layers.1.mlp.experts.2.") && p.role == "weight") x *= 100;
    }
  const fs::path path = save(arrays, "odd", 2);
  const json experts = json_of(tool("info --json " + path.string())).at("experts");
  EXPECT_EQ(experts.at("gradients").at("least"), (json{{"over_median", 0}, {"layer", 0}, {"expert", 5}}));
  EXPECT_EQ(experts.at("weights").at("most").at("layer"), 1);
  EXPECT_EQ(experts.at("weights").at("most").at("expert"), 2);
  EXPECT_GT(experts.at("weights").at("most").at("over_median").get<double>(), 50);
  expect(tool("info " + path.string()), 0, {"(layer 0 expert 5)", "(layer 1 expert 2)"});
}

TEST_F(CheckpointTool, RunsMeanTheirNewestIntactCheckpoint) {
  fs::remove(run_ / "checkpoints" / "latest");
  fs::create_directory_symlink("step-00000006", run_ / "checkpoints" / "latest");
  const std::string latest = (run_ / "checkpoints" / "latest").string();
  expect(tool("info " + latest), 0, {checkpoint(6).string() + " "});
  expect(tool("info --no-norms " + latest + "/"), 0, {checkpoint(6).string() + " "});
  expect(tool("info --no-norms " + (run_ / "checkpoints").string()), 0, {checkpoint(6).string() + " "});
  flip_byte(shard(6));
  // The damage is in the tensors, which are not looked at.
  expect(tool("info --no-norms " + run_.string()), 0, {checkpoint(6).string() + " "});
  expect(tool("info " + run_.string()), 0, {"skipping", "step-00000006", "is damaged", checkpoint(4).string() + " "});
  expect(tool("info " + checkpoint(6).string()), 1, {"shard-00000-of-00001.h5 is damaged: checksum"});
  fs::remove(shard(4));
  expect(tool("info --no-norms " + run_.string()), 0, {checkpoint(6).string() + " "});
  expect(tool("info " + run_.string()), 0, {checkpoint(2).string() + " "});
  fs::remove(checkpoint(6) / "manifest.json");
  expect(tool("info " + checkpoint(6).string()), 2, {"no manifest.json", "not a complete checkpoint"});
  expect(tool("info " + (run_ / "nothing").string()), 2, {"does not exist", "give a run directory"});
  expect(tool("info " + directory_.path().string()), 2, {"holds no intact checkpoint"});
}

TEST_F(CheckpointTool, VerifyNamesEverythingThatIsDamaged) {
  expect(tool("verify " + run_.string()), 0,
         {checkpoint(2).string() + ": intact: ", checkpoint(4).string() + ": intact: ",
          checkpoint(6).string() + ": intact: ", "GiB/s"});
  flip_byte(shard(2));
  flip_byte(checkpoint(6) / "manifest.json");
  expect(tool("verify " + run_.string()), 1,
         {checkpoint(2).string() + ": DAMAGED", "shard-00000-of-00001.h5 is damaged: checksum",
          checkpoint(4).string() + ": intact: ", checkpoint(6).string() + ": DAMAGED", "manifest.json"});
  expect(tool("verify " + checkpoint(4).string()), 0, {"intact"});
  const CommandResult r = tool("verify --json " + run_.string());
  EXPECT_EQ(r.exit_code, 1);
  const json j = json_of(r);
  EXPECT_EQ(j.at("intact"), false);
  ASSERT_EQ(j.at("checkpoints").size(), 3U);
  EXPECT_EQ(j.at("checkpoints")[1].at("intact"), true);
  expect(tool("verify " + directory_.path().string()), 2, {"holds no checkpoints"});
}

// Of another emox: nothing says that it is not good.
TEST_F(CheckpointTool, AnotherFormatVersionIsNeitherDamagedNorPruned) {
  const fs::path manifest = checkpoint(6) / "manifest.json";
  json content = json::parse(std::ifstream(manifest));
  content["version"] = 5;
  std::ofstream(manifest) << signed_text(content);
  expect(tool("verify " + run_.string()), 1,
         {checkpoint(4).string() + ": intact: ", checkpoint(6).string() + ": NOT VERIFIED", "in format version 5"});
  const json j = json_of(tool("verify --json " + checkpoint(6).string()));
  EXPECT_TRUE(j.at("checkpoints")[0].at("damage").empty());
  EXPECT_EQ(j.at("checkpoints")[0].at("not_verified").size(), 1U);
  for (const char* command : {"info ", "info --no-norms "})
    expect(tool(command + run_.string()), 2, {"in format version 5", "neither passed over nor replaced"});
  expect(tool("prune --keep-last=1 " + run_.string()), 2, {"in format version 5"});
  EXPECT_TRUE(fs::exists(checkpoint(2)) && fs::exists(checkpoint(6)));
}

TEST_F(CheckpointTool, DiffTellsWhatChanged) {
  const Arrays arrays = load(6);
  const fs::path same = save(arrays, "same", 3);
  expect(tool("diff " + run_.string() + " " + same.string()), 0, {"tensors are equal", "ranks: 1 | 3"});
  const CommandResult steps = tool("diff " + checkpoint(2).string() + " " + checkpoint(6).string());
  expect(
      steps, 1,
      {"step: 2 | 6", "tokens: 1536 | 4608", "extra.data_step: 2 | 6", "layers.*.mlp.experts.*.up_proj", "16 of 16"});
  EXPECT_EQ(json_of(tool("diff --json " + run_.string() + " " + same.string())).at("equal"), true);

  const std::string changed = "model.layers.1.mlp.experts.3.up_proj.weight";
  Arrays other = load(6);
  other.manifest.recipe = to_ini(parse_recipe(other.manifest.recipe, "saved", {"--train.learning_rate=0.5"}));
  for (const CheckpointPiece& p : other.pieces)
    if (p.name == changed && p.role == "weight") p.view.data<float>()[35] = std::nanf("");
  const std::string both = run_.string() + " " + save(other, "other", 2).string();
  expect(tool("diff " + both), 1,
         {"train.learning_rate: 0.001 | 0.5", "layers.1.mlp.experts.3.up_proj: 1 of 512 elements",
          "max nan at [1,3]: ", " | nan"});
  const json j = json_of(tool("diff --json " + both));
  ASSERT_EQ(j.at("different").size(), 1U);
  EXPECT_EQ(j.at("different")[0].at("name"), changed);
  EXPECT_EQ(j.at("different")[0].at("at"), 35);
  EXPECT_EQ(j.at("different")[0].at("max"), "nan");
  EXPECT_EQ(j.at("different")[0].at("not_a_number"), 1);

  Arrays newer = load(6);
  newer.manifest.recipe += "[section_of_another_version]\n";
  expect(tool("diff " + run_.string() + " " + save(newer, "newer", 1).string()), 0,
         {"recipe: one text | another version's", "tensors are equal"});
  expect(tool("info " + save(newer, "newer", 1).string()), 0, {"recipe of another version"});
  other.pieces.erase(std::remove_if(other.pieces.begin(), other.pieces.end(),
                                    [&](const CheckpointPiece& p) { return p.name == changed; }),
                     other.pieces.end());
  expect(tool("diff " + run_.string() + " " + save(other, "fewer", 2).string()), 1, {"only in A: " + changed});
  flip_byte(shard(6));
  expect(tool("diff " + checkpoint(6).string() + " " + same.string()), 1, {"shard-00000-of-00001.h5 is damaged"});
  expect(tool("diff " + run_.string()), 2, {"missing argument", "A B"});
}

TEST_F(CheckpointTool, ExportReadsOnlyWhatItNeeds) {
  const Arrays arrays = load(6);
  const fs::path source = save(arrays, "source", 3), output = directory_.path() / "out.h5";
  // Damages every file that does not hold this expert.
  const std::string expert = "model.layers.1.mlp.experts.3.";
  std::set<std::string> needed;
  std::size_t damaged = 0;
  for (const ManifestTensor& t : read_manifest(source).tensors)
    if (t.name.starts_with(expert)) needed.insert(t.file);
  for (const ManifestFile& f : read_manifest(source).files)
    if (!needed.contains(f.name)) flip_byte(source / f.name), ++damaged;
  ASSERT_EQ(needed.size(), 1U);
  ASSERT_EQ(damaged, 3U);  // two shards and the index
  const std::string common = "export " + source.string() + " --output=" + output.string();
  expect(tool(common), 1, {"is damaged: checksum"});
  EXPECT_FALSE(fs::exists(output));
  expect(tool(common + " --moments --experts='1:3' --only=model.layers.1.mlp.experts.3"), 0,
         {"9 tensors of", "read 1 of its 4 files"});
  std::size_t compared = 0;
  Hdf5File file = Hdf5File::open(output);
  for (const CheckpointPiece& p : arrays.pieces) {
    if (!p.name.starts_with(expert)) continue;
    const Tensor got({}, p.view.dtype(), p.shape);
    ManifestTensor entry{.name = p.name,
                         .role = p.role,
                         .dtype = p.view.dtype(),
                         .shape = p.shape,
                         .begin = 0,
                         .end = p.end,
                         .file = {},
                         .dataset = dataset_path(p.name, p.role),
                         .checksum = {}};
    const ArraySlice slice{0, got};
    file.read(entry, std::span(&slice, 1));
    EXPECT_EQ(test::values_of<float>(got), test::values_of<float>(p.view)) << p.name;
    ++compared;
  }
  EXPECT_EQ(compared, 9U);
}

TEST_F(CheckpointTool, ExportOfASubsetAndItsMistakes) {
  const fs::path output = directory_.path() / "out.h5";
  const std::string common = "export " + run_.string() + " --output=" + output.string();
  const json all = json_of(tool(common + " --json"));
  const json some = json_of(tool(common + " --json --force --experts=0-1,7"));
  // Of 2 layers of 8 routed experts with 3 matrices each, 5 experts are left out in each.
  EXPECT_EQ(some.at("tensors").get<int>(), all.at("tensors").get<int>() - 2 * 5 * 3);
  const json layers = json_of(tool(common + " --json --force --experts='1:0-1,7'"));
  EXPECT_EQ(layers.at("tensors").get<int>(), all.at("tensors").get<int>() - (8 + 5) * 3);
  const auto size = fs::file_size(output);
  expect(tool(common), 2, {output.string() + " exists", "--force"});
  expect(tool(common + " --force --experts=8"), 2, {"layer 0 has no routed expert 8; use 0 to 7"});
  expect(tool(common + " --force --experts='2:1'"), 2, {"there is no layer 2 with experts; use 0 to 1"});
  expect(tool(common + " --force --experts=1-x"), 2, {"cannot read 'x'", "0-3,7"});
  expect(tool(common + " --force --experts=3-1"), 2, {"cannot read '3-1'"});
  expect(tool(common + " --force --only=modle.norm"), 2, {"no tensor's name begins so", "model.norm.weight"});
  expect(tool("export " + run_.string()), 2, {"--output=FILE.h5"});
  expect(tool("export " + run_.string() + " --output=" + (run_ / "none" / "x.h5").string()), 2, {"is not a directory"});
  EXPECT_EQ(fs::file_size(output), size);
  for (const auto& entry : fs::directory_iterator(list_checkpoints(run_ / "checkpoints").front()))
    expect(tool("export " + run_.string() + " --force --output=" + entry.path().string()), 2,
           {entry.path().filename().string() + " lies in the checkpoint", "name a file elsewhere"});
  expect(tool("verify " + run_.string()), 0, {});
}

TEST_F(CheckpointTool, PruneSaysWhatItDoes) {
  const auto count = [&] {
    return std::count_if(fs::directory_iterator(run_ / "checkpoints"), fs::directory_iterator(), [](const auto& e) {
      return step_of_directory(e.path().filename().string()).has_value() && !e.is_symlink();
    });
  };
  expect(tool("prune " + run_.string()), 2, {"--keep-last=N"});
  expect(tool("prune " + run_.string() + " --keep-last=0"), 2, {"at least 1"});
  const std::string common = "prune " + run_.string() + " --keep-last=1";
  expect(tool(common + " --dry-run"), 0,
         {"would remove " + checkpoint(2).string(), "would remove " + checkpoint(4).string(), "2 checkpoint(s)",
          "; 1 left"});
  EXPECT_EQ(count(), 3);
  {
    const RunLease training(run_, LeaseHolder::self({"emox", "train", "x.ini"}));
    expect(tool(common), 75, {"is in use", "emox train x.ini"});
    EXPECT_EQ(count(), 3);
  }
  std::int64_t bytes = 0;
  for (const auto& entry : fs::directory_iterator(checkpoint(2))) bytes += static_cast<std::int64_t>(entry.file_size());
  const json kept_some = json_of(tool(common + " --keep-every-steps=4 --json"));
  EXPECT_EQ(kept_some.at("removed"), (json{"step-00000002"}));
  EXPECT_EQ(kept_some.at("bytes"), bytes);
  EXPECT_EQ(kept_some.at("kept"), 2);
  EXPECT_EQ(count(), 2);
  // The only intact one stays, whatever is asked for.
  flip_byte(shard(6));
  expect(tool(common), 0, {"removed 0 checkpoint(s)", "2 left"});
  EXPECT_EQ(count(), 2);
  expect(tool("prune " + directory_.path().string() + " --keep-last=1"), 2, {"holds no checkpoints"});
}

TEST(CheckpointToolWords, UnknownPartsGetTheNearest) {
  const auto tool = [](const std::string& arguments) {
    return test::run_command(EMOX_BINARY " checkpoint " + arguments);
  };
  EXPECT_NE(tool("verfiy x").output.find("did you mean verify?"), std::string::npos);
  EXPECT_EQ(tool("verfiy x").exit_code, 2);
  EXPECT_EQ(tool("").exit_code, 2);
  EXPECT_NE(tool("info --al x").output.find("did you mean --all?"), std::string::npos);
}

TEST(CheckpointToolWords, NumbersAreShort) {
  for (const auto& [x, text] : std::vector<std::pair<double, std::string>>{{0, "0"},
                                                                           {0.0234, "0.0234"},
                                                                           {0.00234, "0.0023"},
                                                                           {1234, "1234"},
                                                                           {1.23e-5, "1.2e-5"},
                                                                           {1.23e-12, "1e-12"},
                                                                           {3.5e38, "3.5e38"},
                                                                           {99999, "1e+05"},
                                                                           {std::nan(""), "nan"}})
    EXPECT_EQ(short_number(x), text);
  EXPECT_EQ(size_text(1023), "1023 B");
  EXPECT_EQ(size_text(61199616), "58.4 MiB");
  EXPECT_EQ(short_size(std::int64_t{1} << 40), "1.0T");
  EXPECT_EQ(short_size(1023), "1023");
  EXPECT_EQ(index_text({2, 3, 4}, 23), "[1,2,3]");
  EXPECT_EQ(age_text(3725), "1 h 2 min");
}

}  // namespace
}  // namespace emox
