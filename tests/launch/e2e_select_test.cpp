// `emox select` and `emox eval` with some experts, as a user runs them.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "launch/config/recipe_file.h"
#include "model/modularity/expert_subset.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using test::CommandResult;

class SelectCommand : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    directory_ = new test::TemporaryDirectory;
    Recipe recipe = test::tiny_recipe(test::make_text_sources(directory_->path()));
    recipe.eval.final = false;
    recipe.run.dir = run().string();
    const auto path = test::write_recipe(directory_->path() / "tiny.ini", recipe);
    const CommandResult r = emox("train " + path.string() + " --run.stop_after_step=8");
    ASSERT_EQ(r.exit_code, 0) << r.output;
    label_ = recipe.data.source[1].substr(0, recipe.data.source[1].find(':'));
  }
  static void TearDownTestSuite() {
    delete directory_;
    directory_ = nullptr;
  }
  static fs::path run() { return directory_->path() / "run"; }
  static std::string file(const std::string& name) { return (directory_->path() / name).string(); }
  /// stderr apart, so that what is printed for programs is one JSON object.
  static CommandResult emox(const std::string& arguments, const std::string& prefix = "", bool errors = true) {
    return test::run_command(prefix + " OMP_NUM_THREADS=1 " EMOX_BINARY " " + arguments +
                             (errors ? "" : " 2>/dev/null"));
  }
  static ExpertSubset select(const std::string& arguments, const std::string& name) {
    const CommandResult r = emox("select " + run().string() + " " + arguments + " --force --output=" + file(name));
    EXPECT_EQ(r.exit_code, 0) << r.output;
    return ExpertSubset::from_file(file(name));
  }
  static nlohmann::json eval(const std::string& arguments) {
    const CommandResult r = emox("eval " + run().string() + " --data.eval_documents=3 --json " + arguments, "", false);
    EXPECT_EQ(r.exit_code, 0) << r.output;
    return nlohmann::json::parse(r.output);
  }
  static void expect_refused(const std::string& arguments, const std::vector<std::string>& parts) {
    const CommandResult r = emox(arguments);
    EXPECT_EQ(r.exit_code, 2) << r.output;
    for (const std::string& part : parts) EXPECT_NE(r.output.find(part), std::string::npos) << r.output;
  }

  static test::TemporaryDirectory* directory_;
  static std::string label_;
};
test::TemporaryDirectory* SelectCommand::directory_ = nullptr;
std::string SelectCommand::label_;

TEST_F(SelectCommand, WritesWhatEveryMethodChooses) {
  for (const std::string method : {"layerwise", "global", "easy-ep", "random"}) {
    SCOPED_TRACE(method);
    const ExpertSubset s = select("--domain=" + label_ + " --keep=4 --examples=3 --method=" + method, "a.json");
    EXPECT_EQ(s.experts, 9);
    EXPECT_EQ(s.mean_keep(), 4);
    EXPECT_TRUE(s.uniform());
    EXPECT_EQ(s.scores.empty(), method == "random");
    EXPECT_EQ(s.provenance.at("method"), method);
    EXPECT_EQ(s.provenance.at("step"), 8);
    EXPECT_EQ(s.provenance.at("domain"), label_);
    if (method != "random") {
      EXPECT_EQ(s.provenance.at("documents"), 3);
    }
  }
  const ExpertSubset by_layer = select("--domain=" + label_ + " --layer-budgets=9,3 --examples=1", "b.json");
  EXPECT_EQ(by_layer.keep(0), 9);
  EXPECT_EQ(by_layer.keep(1), 3);
}

TEST_F(SelectCommand, TheSameTextAnyWay) {
  const std::string text = "the quick brown fox";
  std::ofstream(file("t.txt")) << text;
  std::ofstream(file("t.jsonl")) << nlohmann::json({{"text", text}}).dump() << "\n\n";
  const ExpertSubset prompt = select("--keep=4 --prompt=\"" + text + "\"", "p.json");
  EXPECT_EQ(prompt.provenance.at("tokens"), text.size() + 1);
  for (const char* name : {"t.txt", "t.jsonl"}) {
    const ExpertSubset s = select("--keep=4 --documents=" + file(name), "d.json");
    EXPECT_EQ(s.routed, prompt.routed) << name;
    EXPECT_EQ(s.scores, prompt.scores) << name;
  }
}

// Experts chosen by held-out text: allowed, and said where the choice is kept.
TEST_F(SelectCommand, HeldOutDocumentsAreSaid) {
  const fs::path source = directory_->path() / label_;
  fs::create_symlink(source / "heldout.npy", file("other-name.npy"));
  fs::copy(source / "heldout.npy", file("copy.npy"));
  fs::copy(source / "heldout.docs.npy", file("copy.docs.npy"));
  for (const std::string& documents :
       {(source / "heldout.npy").string(), file("other-name.npy"), file("copy.npy"), (source / "tune.npy").string()}) {
    const CommandResult r = emox("select " + run().string() + " --keep=4 --examples=2 --documents=" + documents +
                                 " --force --output=" + file("h.json"));
    EXPECT_EQ(r.exit_code, 0) << r.output;
    EXPECT_NE(r.output.find("are held-out documents of " + label_), std::string::npos) << r.output;
    const auto provenance = ExpertSubset::from_file(file("h.json")).provenance;
    EXPECT_EQ(provenance.at("held_out_of"), label_);
    EXPECT_EQ(provenance.at("held_out_part"), documents.ends_with("tune.npy") ? "tune" : "heldout");
  }
  const CommandResult r =
      emox("select " + run().string() + " --keep=4 --examples=2 --documents=" + (source / "train.npy").string() +
           " --force --output=" + file("t.json"));
  EXPECT_EQ(r.output.find("held-out"), std::string::npos) << r.output;
  EXPECT_TRUE(ExpertSubset::from_file(file("t.json")).provenance.at("held_out_of").is_null());
}

// A prompt is bytes.
TEST_F(SelectCommand, PromptsHoldAnyBytes) {
  const std::string prompt = R"text("$(printf "\377\200 \303 \001\\\\ \042")")text";
  const ExpertSubset s = select("--keep=4 --prompt=" + prompt, "bytes.json");
  EXPECT_EQ(s.provenance.at("prompt"), "\\xff\\x80 \\xc3 \x01\\ \"");
  EXPECT_EQ(s.provenance.at("tokens"), 10);
}

TEST_F(SelectCommand, EvaluatesWithTheChosenExperts) {
  const nlohmann::json full = eval("");
  EXPECT_EQ(full.at("experts_kept"), 9);
  EXPECT_FALSE(full.contains("full"));
  const nlohmann::json kept = eval("--keep=3 --examples=2");
  EXPECT_EQ(kept.at("experts_kept"), 3);
  EXPECT_EQ(full.at("data"), "as trained");
  EXPECT_EQ(kept.at("data"), "as trained");
  EXPECT_EQ(full.at("part"), "report");
  EXPECT_EQ(kept.at("part"), "report");
  EXPECT_EQ(kept.at("load").at("files_opened"), 2);  // the shard and the index, each once
  nlohmann::json losses = full;
  losses.erase("data"), losses.erase("part"), losses.erase("load");  // said once, of both
  EXPECT_EQ(kept.at("full"), losses);
  ASSERT_EQ(kept.at("domains").size(), full.at("domains").size());
  // A model that the command line changes is not the run's, and experts of another run are others.
  const nlohmann::json other = eval("--moe.eval_pool=4");
  EXPECT_EQ(other.at("other_model_keys").size(), 1U) << other;
  EXPECT_NE(other.at("other_model_keys").at(0).get<std::string>().find("moe.eval_pool"), std::string::npos) << other;
  EXPECT_FALSE(full.contains("other_model_keys"));
  nlohmann::json foreign = nlohmann::json(select("--keep=3 --domain=" + label_, "here.json").to_json());
  const auto evaluated = [&] {
    std::ofstream(file("there.json")) << foreign.dump();
    return emox("eval " + run().string() + " --json --experts=" + file("there.json")).output;
  };
  EXPECT_EQ(evaluated().find("another run"), std::string::npos);
  foreign["provenance"]["checkpoint"] = "/elsewhere/runs/o/checkpoints/step-00000008";
  EXPECT_EQ(evaluated().find("another run"), std::string::npos) << "of the same name and seed: it was moved";
  foreign["provenance"]["run"]["seed"] = 77;
  EXPECT_NE(evaluated().find("was chosen on /elsewhere/runs/o/checkpoints/step-00000008, another run"),
            std::string::npos);
  foreign["provenance"]["run"] = "text";
  EXPECT_NE(evaluated().find("another run"), std::string::npos);
  foreign["provenance"]["checkpoint"] = 7;
  EXPECT_NE(evaluated().find("\"experts_from\""), std::string::npos) << "a number is no place";
  // Each domain with its own subset: what a file with that subset gives for the domain.
  const ExpertSubset s = select("--domain=" + label_ + " --keep=3 --examples=2", "own.json");
  const nlohmann::json own = eval("--experts=" + file("own.json"));
  EXPECT_EQ(own.at("experts_kept"), 3);
  EXPECT_EQ(own.at("domains").at(label_), kept.at("domains").at(label_));
  EXPECT_NE(own.at("mean"), full.at("mean"));
  // All experts kept: the whole model, bit for bit.
  const nlohmann::json all = eval("--keep=9 --examples=1");
  EXPECT_EQ(all.at("domains"), full.at("domains"));
  EXPECT_NE(emox("eval " + run().string() + " --keep=3 --examples=1").output.find("with 3 experts a layer"),
            std::string::npos);
}

TEST_F(SelectCommand, CutsASmallerModelThatEvaluatesAndTrainsOn) {
  (void)select("--domain=" + label_ + " --keep=4 --examples=2", "four.json");
  const std::string small = file("small"), cut = "subset " + run().string() + " --experts=" + file("four.json");
  const CommandResult r = emox(cut + " --output=" + small);
  ASSERT_EQ(r.exit_code, 0) << r.output;
  const nlohmann::json masked = eval("--experts=" + file("four.json"));
  const CommandResult e = emox("eval " + small + " --data.eval_documents=3 --json", "", false);
  ASSERT_EQ(e.exit_code, 0) << e.output;
  const nlohmann::json own = nlohmann::json::parse(e.output);
  EXPECT_EQ(own.at("experts_kept"), 4);
  EXPECT_EQ(own.at("domains"), masked.at("domains"));  // bit for bit
  const CommandResult t = emox("train " + small + "/recipe.ini --run.stop_after_step=10");
  EXPECT_EQ(t.exit_code, 0) << t.output;
  EXPECT_NE(t.output.find("from step 8"), std::string::npos) << t.output;
  expect_refused(cut + " --output=" + small, {"is there already"});
  expect_refused(cut, {"--output is missing"});
  (void)select("--domain=" + label_ + " --layer-budgets=4,3 --examples=1", "uneven.json");
  expect_refused("subset " + run().string() + " --experts=" + file("uneven.json") + " --output=" + file("uneven"),
                 {"uneven.json keeps different numbers"});
  EXPECT_FALSE(fs::exists(file("uneven")));
}

TEST_F(SelectCommand, RefusesWhatMakesNoSense) {
  const std::string command = "select " + run().string() + " --output=" + file("no.json");
  expect_refused(command + " --prompt=x", {"--keep=K", "--layer-budgets"});
  expect_refused(command + " --keep=4", {"--domain=LABEL", "--prompt=TEXT"});
  expect_refused(command + " --keep=4 --prompt=x --domain=" + label_, {"Give one of"});
  expect_refused(command + " --keep=4 --domain=nowhere", {"no domain nowhere", label_});
  expect_refused(command + " --keep=1 --prompt=x", {"keep 2 to 9 of 9"});
  expect_refused("eval " + run().string() + " --keep=4 --model.layers=3",
                 {"has no model.layers.2.", "leave out the keys that make another model"});
  expect_refused(command + " --keep=10 --prompt=x", {"keep 2 to 9 of 9"});
  expect_refused(command + " --layer-budgets=4,4,4 --prompt=x", {"gives 3 numbers", "each of the 2"});
  expect_refused(command + " --keep=4 --prompt=x --method=best", {"best is not a method", "layerwise, global"});
  expect_refused(command + " --keep=4 --documents=" + file("none.txt"), {"none.txt cannot be read"});
  EXPECT_FALSE(fs::exists(file("no.json")));
  std::ofstream(file("there.json")) << "{}";
  expect_refused("select " + run().string() + " --keep=4 --prompt=x --output=" + file("there.json"), {"--force"});
  expect_refused("eval " + run().string() + " --experts=" + file("there.json"), {"there.json is not a subset"});
  expect_refused("eval " + run().string() + " --method=global", {"add --keep=K"});
  expect_refused("eval " + run().string() + " --keep=3 --experts=x", {"leave out --keep"});
  ExpertSubset other;
  other.experts = 5, other.shared = 1, other.routed = {{0}, {1}};
  std::ofstream(file("other.json")) << other.to_json().dump();
  expect_refused("eval " + run().string() + " --experts=" + file("other.json"), {"with 5 experts", "with 9"});
}

}  // namespace
}  // namespace emox
