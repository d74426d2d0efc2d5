// Runs that begin with another run's checkpoint, on ranks as threads.
#include "launch/run/warm_start.h"
#include "launch/run/model_pieces.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "data/format/npy.h"
#include "launch/config/recipe_file.h"
#include "launch/run/run_directory.h"
#include "launch/run/sharding.h"
#include "launch/run/trainer.h"
#include "runtime/core/error.h"
#include "runtime/files/files.h"
#include "tests/support/checkpoints.h"
#include "tests/support/messages.h"
#include "tests/support/ranks.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox {
namespace {

using test::expect_parts;

namespace fs = std::filesystem;

struct Mesh {
  int ranks;
  std::int64_t expert_parallel;
};
constexpr Mesh kMeshes[] = {{1, 1}, {2, 2}, {4, 4}, {4, 2}};

class WarmStart : public testing::Test {
 protected:
  WarmStart() : recipe_(test::tiny_recipe(test::make_text_sources(directory_.path()))) {
    recipe_.eval.final = false;
    recipe_.train.steps = 3, recipe_.train.warmup_steps = 0;
  }

  fs::path path_of(const std::string& name) const { return directory_.path() / name; }
  /// The newest checkpoint of a run.
  fs::path checkpoint(const std::string& name) const {
    std::vector<fs::path> all;
    for (const auto& entry : fs::directory_iterator(path_of(name) / "checkpoints")) all.push_back(entry.path());
    return *std::max_element(all.begin(), all.end());
  }
  void run(const std::string& name, Recipe r, Mesh mesh = {1, 1}) const {
    r.run.dir = path_of(name).string();
    r.parallel.expert_parallel = mesh.expert_parallel;
    test::run_ranks(mesh.ranks, [&](Communicator& comm) {
      Session session(comm.split(0, comm.rank()), 1);
      r.validate(comm.size());
      train(session, r, {"test"});
    });
  }
  Recipe from(const std::string& source, WarmStartState state = WarmStartState::Weights) const {
    Recipe r = recipe_;
    r.run.warm_start = path_of(source).string(), r.run.warm_start_state = state;
    return r;
  }
  /// The message of the UsageError with which the run is refused.
  std::string refusal(const Recipe& r, Mesh mesh = {1, 1}) const {
    try {
      run("refused", r, mesh);
    } catch (const UsageError& e) {
      EXPECT_FALSE(fs::exists(path_of("refused") / "metrics.jsonl")) << "refused before anything is computed";
      return e.message();
    }
    ADD_FAILURE() << "not refused";
    return "";
  }
  std::string log(const std::string& name) const {
    return try_read_text(path_of(name) / "log" / "rank-00000.txt").text;
  }
  /// What a run has in memory after its warm start, before its first step, as a checkpoint; and the optimizer's steps.
  std::int64_t save_start(const std::string& name, Recipe r, Mesh mesh) const {
    r.parallel.expert_parallel = mesh.expert_parallel;
    std::int64_t steps = -1;
    test::run_ranks(mesh.ranks, [&](Communicator& comm) {
      Session session(comm.split(0, comm.rank()), 1);
      Sharding sharding(session.comm(), r.model, r.parallel);
      LanguageModel model(r.model, session.ctx(), true, sharding.experts());
      Optimizer optimizer(session.ctx(), model.parameters(), sharding.mesh());
      warm_start(session, r, model, optimizer);
      auto pieces = owned_pieces(optimizer);
      if (session.root()) {
        steps = optimizer.steps_before();
        for (CheckpointPiece& p : bias_pieces(model)) pieces.push_back(p);
      }
      save_checkpoint(session.comm(), path_of(name) / "checkpoints", 0, pieces, {});
    });
    return steps;
  }
  using Values = std::map<std::pair<std::string, std::string>, std::vector<float>>;
  static Values values(const fs::path& path) {
    std::vector<Tensor> memory;
    std::vector<CheckpointPiece> pieces;
    for (const ManifestTensor& t : read_manifest(path).tensors) {
      if (t.begin != 0) continue;
      memory.emplace_back(Device{}, t.dtype, t.shape);
      pieces.push_back({t.name, t.role, t.shape, 0, t.shape.numel(), memory.back()});
    }
    load_checkpoint(*make_self_communicator(), path, pieces);
    Values v;
    for (const CheckpointPiece& p : pieces) v[{p.name, p.role}] = test::values_of<float>(p.view);
    return v;
  }
  static void set_extra(const fs::path& path, const nlohmann::json& extra) {
    std::ifstream in(path / "manifest.json");
    auto content = nlohmann::json::parse(in);
    content["extra"] = extra;
    std::ofstream(path / "manifest.json") << signed_text(content);
  }

  test::TemporaryDirectory directory_;
  Recipe recipe_;
};

TEST_F(WarmStart, WeightsAreTheSameBitsAndMomentsBeginAtZeroOnAnyMesh) {
  run("source", recipe_, {2, 2});
  const Values source = values(checkpoint("source"));
  for (const Mesh mesh : kMeshes) {
    SCOPED_TRACE(testing::Message() << mesh.ranks << " ranks, experts over " << mesh.expert_parallel);
    EXPECT_EQ(save_start("start", from("source"), mesh), 0);
    const Values start = values(checkpoint("start"));
    ASSERT_EQ(start.size(), source.size());
    for (const auto& [array, v] : source) {
      const auto& got = start.at(array);
      if (array.second == "weight") {
        EXPECT_EQ(got, v) << array.first;
      } else {
        EXPECT_EQ(got, std::vector<float>(v.size(), 0.0F)) << array.first << " " << array.second;
      }
    }
    EXPECT_EQ(save_start("all", from("source", WarmStartState::Optimizer), mesh), 3);
    EXPECT_TRUE(test::same_arrays(checkpoint("all"), checkpoint("source")));
  }
  std::set<std::vector<float>> moments;  // what is compared above is not all zeros
  for (const auto& [array, v] : source)
    if (array.second == "exp_avg_sq") moments.insert(v);
  EXPECT_GT(moments.size(), 50U);
}

// Every sequence of the data is the same one, nothing is drawn and the learning rate is constant, so that a step does
// not know which one it is: two, two and two steps are six, bit for bit, if the optimizer's count goes on as well.
TEST_F(WarmStart, WithTheOptimizerPartsAreTheWhole) {
  std::vector<std::uint16_t> tokens;
  for (int i = 0; i < 64 * 24; ++i) tokens.push_back(i % 64 == 63 ? 256 : static_cast<std::uint16_t>(i % 64 * 3));
  write_npy(path_of("same.npy"), std::span<const std::uint16_t>(tokens));
  recipe_.data.source = {"same:1:" + path_of("same.npy").string()};
  recipe_.model.pool = PoolMode::Fixed;
  recipe_.train.schedule = ScheduleKind::Constant;
  for (const Mesh mesh : {Mesh{1, 1}, Mesh{2, 2}, Mesh{4, 4}}) {
    SCOPED_TRACE(testing::Message() << mesh.ranks << " ranks, experts over " << mesh.expert_parallel);
    const auto name = [&](const char* part) { return part + std::to_string(mesh.ranks); };
    const auto steps = [](Recipe r, std::int64_t n) { return r.train.steps = n, r; };
    run(name("whole"), steps(recipe_, 6), mesh);
    run(name("a"), steps(recipe_, 2), mesh);
    run(name("b"), steps(from(name("a"), WarmStartState::Optimizer), 2), mesh);
    Recipe c = steps(from(name("b"), WarmStartState::Optimizer), 2);
    c.run.stop_after_step = 1;
    run(name("c"), c, mesh);
    // Resumed in the middle, and the source is not needed any more.
    fs::rename(path_of(name("b")), path_of(name("gone")));
    c.run.stop_after_step = 0;
    run(name("c"), c, mesh);
    fs::rename(path_of(name("gone")), path_of(name("b")));
    EXPECT_TRUE(test::same_arrays(checkpoint(name("c")), checkpoint(name("whole"))));
    EXPECT_EQ(read_manifest(checkpoint(name("c"))).step, 2);
    EXPECT_EQ(read_manifest(checkpoint(name("c"))).extra.at("optimizer_step"), 6);
    EXPECT_EQ(read_manifest(checkpoint(name("c"))).extra.at("data_step"), 2);
    const auto whole = test::read_metrics(path_of(name("whole"))), last = test::read_metrics(path_of(name("c")));
    ASSERT_EQ(last.size(), 2U);
    EXPECT_EQ(last[0].at("step"), 1);
    for (const std::size_t i : {0, 1}) EXPECT_EQ(last[i].at("loss"), whole[i + 4].at("loss"));
    if (mesh.ranks > 1) continue;
    // The count matters: with that of data steps alone, as a checkpoint without optimizer_step has it, the end differs.
    set_extra(checkpoint(name("b")), {{"data_step", 2}});
    run(name("d"), steps(from(name("b"), WarmStartState::Optimizer), 2), mesh);
    EXPECT_EQ(read_manifest(checkpoint(name("d"))).extra.at("optimizer_step"), 4);
    EXPECT_FALSE(test::same_arrays(checkpoint(name("d")), checkpoint(name("whole"))));
    run(name("e"), steps(from(name("b")), 2), mesh);
    EXPECT_FALSE(test::same_arrays(checkpoint(name("e")), checkpoint(name("whole"))));
  }
}

TEST_F(WarmStart, AChangeThatFitsIsAllowedAndListed) {
  recipe_.model.pool = PoolMode::Off, recipe_.model.intra_document_attention = false;
  run("standard", recipe_);
  Recipe anneal = from("standard", WarmStartState::Optimizer);
  anneal.run.name = "anneal";
  anneal.model.pool = PoolMode::Fixed, anneal.model.intra_document_attention = true;
  anneal.train.steps = 2, anneal.train.schedule = ScheduleKind::Linear, anneal.train.min_lr_ratio = 0;
  anneal.train.learning_rate = 1e-4;
  run("anneal", anneal, {2, 2});
  const auto metrics = test::read_metrics(path_of("anneal"));
  ASSERT_EQ(metrics.size(), 2U);
  EXPECT_EQ(metrics[0].at("lr"), 5e-5);  // step 1 of 2 on the way from 1e-4 to 0
  EXPECT_EQ(metrics[1].at("lr"), 0.0);
  EXPECT_EQ(metrics[0].at("pool_mean"), 4.0);
  EXPECT_EQ(metrics[0].at("tokens"), 12 * 64);
  const std::string text = log("anneal");
  expect_parts(text, {"warm start from " + checkpoint("standard").string() + " (step 3)", "after 3 steps",
                      "moe.pool: off -> fixed", "model.intra_document_attention: false -> true",
                      "train.schedule: cosine -> linear", "train.learning_rate: 0.001 -> 0.0001", "train.steps: 3 -> 2",
                      "parallel.expert_parallel: 1 -> 2"});
  for (const char* own : {"run.dir", "run.name", "run.warm_start"}) EXPECT_EQ(text.find(own), std::string::npos) << own;
}

TEST_F(WarmStart, WhatDoesNotFitIsRefusedWithBothShapes) {
  run("source", recipe_, {2, 1});
  Recipe more = from("source");
  more.model.num_experts = 13;
  for (const Mesh mesh : kMeshes)
    expect_parts(refusal(more, mesh),
                 {"run.warm_start", checkpoint("source").string(),
                  "model.layers.*.mlp.gate.weight (2 of them): [9, 32] in the checkpoint, [13, 32] here",
                  "model.layers.*.mlp.experts.*.up_proj.weight (8 of them): nothing in the checkpoint, [16, 32] here"});
  Recipe fewer = from("source");
  fewer.model.num_experts = 5, fewer.model.expert_ff = 8;
  expect_parts(refusal(fewer), {"model.layers.*.mlp.experts.*.up_proj.weight (10 of them): [16, 32] in the checkpoint, "
                                "[8, 32] here",
                                "[16, 32] in the checkpoint, nothing here"});
}

TEST_F(WarmStart, WithoutMomentsOnlyTheWeights) {
  run("source", recipe_);
  std::vector<CheckpointPiece> weights;
  std::vector<Tensor> memory;
  for (const ManifestTensor& t : read_manifest(checkpoint("source")).tensors) {
    if (t.role != "weight") continue;
    memory.emplace_back(Device{}, t.dtype, t.shape);
    weights.push_back({t.name, t.role, t.shape, 0, t.shape.numel(), memory.back()});
  }
  const auto comm = make_self_communicator();
  load_checkpoint(*comm, checkpoint("source"), weights);
  save_checkpoint(*comm, path_of("export") / "checkpoints", 3, weights, {});
  expect_parts(refusal(from("export", WarmStartState::Optimizer)),
               {"run.warm_start_state = optimizer", checkpoint("export").string(), "no moments",
                "use run.warm_start_state = weights"});
  run("ok", from("export"));
  expect_parts(log("ok"), {"its recipe is not known"});
}

TEST_F(WarmStart, TheSelectionBiasComesGoesOrStays) {
  recipe_.model.balance = BalanceMode::Bias, recipe_.model.bias_rate = 0.01;
  run("bias", recipe_);
  const Recipe with = from("bias");
  save_start("both", with, {2, 2});
  const std::pair<std::string, std::string> array = {"model.layers.1.mlp.gate.selection_bias", "weight"};
  const auto bias = values(checkpoint("bias")).at(array);
  EXPECT_NE(bias, std::vector<float>(8, 0.0F));
  EXPECT_EQ(values(checkpoint("both")).at(array), bias);

  Recipe without = with;
  without.model.balance = BalanceMode::Aux;
  run("dropped", without, {2, 2});
  expect_parts(log("dropped"), {"its selection bias is dropped", "moe.balance: bias -> aux"});
  Recipe again = from("dropped");
  save_start("zero", again, {1, 1});
  EXPECT_EQ(values(checkpoint("zero")).at(array), std::vector<float>(8, 0.0F));
  run("new", again);
  expect_parts(log("new"), {"no selection bias: that of this run begins at 0"});
}

TEST_F(WarmStart, ASourceThatIsNotThereOrDamaged) {
  expect_parts(refusal(from("nowhere")), {"run.warm_start = " + path_of("nowhere").string(), "does not exist"});
  fs::create_directories(path_of("empty"));
  expect_parts(refusal(from("empty")), {"run.warm_start = ", "holds no intact checkpoint"});
  run("source", recipe_);
  Recipe direct = from("source");
  direct.run.warm_start = checkpoint("source").string();
  Recipe anneal = direct;
  anneal.train.anneal_from_step = 2, anneal.train.schedule = ScheduleKind::Linear, anneal.train.min_lr_ratio = 0;
  expect_parts(refusal(anneal), {"train.anneal_from_step = 2", "set it to 0"});
  const fs::path shard = checkpoint("source") / "shard-00000-of-00001.h5";
  fs::resize_file(shard, fs::file_size(shard) - 1);
  for (const Mesh mesh : {Mesh{1, 1}, Mesh{2, 2}})
    expect_parts(refusal(direct, mesh), {"run.warm_start = ", shard.string(), "is damaged"});
}

TEST_F(WarmStart, AResumedRunKeepsItsBeginning) {
  run("source", recipe_);
  Recipe r = from("source");
  r.run.stop_after_step = 2;
  run("run", r);
  Recipe other = r;
  other.run.warm_start = "";
  try {
    run("run", other);
    FAIL() << "resumed with another beginning";
  } catch (const UsageError& e) {
    expect_parts(e.message(), {"run.warm_start (was " + path_of("source").string()});
  }
  r.run.stop_after_step = 0;
  run("run", r);
  EXPECT_EQ(test::read_metrics(path_of("run")).size(), 3U);
}

}  // namespace
}  // namespace emox
