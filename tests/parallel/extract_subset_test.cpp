// A model cut out of a checkpoint on any ranks: the whole model with the same experts kept, bit for bit, and a run.
#include "launch/run/extract_subset.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "launch/config/recipe_file.h"
#include "launch/run/model_pieces.h"
#include "launch/run/run_directory.h"
#include "launch/run/trainer.h"
#include "model/transformer/inference_memory.h"
#include "parallel/checkpoint/checkpoint.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/ops/basic.h"
#include "tests/support/agreement.h"
#include "tests/support/checkpoints.h"
#include "tests/support/ranks.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

class ExtractSubset : public testing::Test {
 protected:
  ExtractSubset() : recipe_(test::tiny_recipe(test::make_text_sources(directory_.path()))) {
    recipe_.eval.final = false;
    recipe_.model.balance = BalanceMode::Bias;
    recipe_.parallel.expert_parallel = 2;
    recipe_.run.dir = (directory_.path() / "whole").string();
    train_until(recipe_, 2, 6);
    checkpoint_ = latest(recipe_.run.dir);
  }
  static void train_until(Recipe r, int ranks, std::int64_t stop) {
    r.run.stop_after_step = stop;
    test::run_ranks(ranks, [&](Communicator& comm) {
      Session session(comm.split(0, comm.rank()), 1);
      train(session, r, {"test"});
    });
  }
  static fs::path latest(const fs::path& run) {
    const auto found = test::latest_in(run / "checkpoints");
    return found ? found->path : fs::path();
  }
  ExtractedSubset cut_by(const std::string& name, int ranks) const {
    ExtractedSubset made;
    test::run_ranks(ranks, [&](Communicator& comm) {
      Session session(comm.split(0, comm.rank()), 1);
      const ExtractedSubset done =
          extract_subset(session, checkpoint_, subset_, "subset.json", directory_.path() / name);
      if (comm.rank() == 0) made = done;
    });
    return made;
  }
  fs::path cut(const std::string& name, int ranks) const { return cut_by(name, ranks).checkpoint; }
  static Recipe recipe_in(const fs::path& checkpoint) {
    return parse_recipe(read_manifest(checkpoint).recipe, checkpoint.string());
  }
  /// Logits of a checkpoint's model on fixed tokens, on one rank.
  static std::vector<float> logits(const fs::path& checkpoint, const std::vector<std::vector<std::int32_t>>* kept) {
    const Recipe r = recipe_in(checkpoint);
    Context ctx;
    const auto comm = make_self_communicator();
    LanguageModel model(r.model, ctx, false);
    ProcessMesh mesh(*comm, 1);
    load_checkpoint(*comm, checkpoint, owned_pieces(ParameterShards(model.parameters(), mesh)));
    if (kept != nullptr) model.keep_experts(ctx, *kept);
    InferenceMemory memory(ctx, model, r.model.sequence_length);
    std::vector<std::int32_t> tokens(idx(r.model.sequence_length));
    for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(i * 37 % 256);
    const std::vector<SequenceInput> inputs{{tokens, {}, 0, 0}};
    const MicroBatch micro = make_micro_batch(r.model, r.data.eos_id(), inputs);
    memory.batch.upload(ctx, micro);
    model.forward(ctx, memory.activations, memory.batch, nullptr);
    const Tensor out(ctx.device, DType::F32, {micro.tokens, r.model.vocab_size});
    model.logits(ctx, out, memory.activations, memory.batch);
    return ops::to_host<float>(ctx, out);
  }
  static std::vector<float> array(const fs::path& checkpoint, const std::string& name, const std::string& role,
                                  Shape shape) {
    const auto comm = make_self_communicator();
    const Tensor memory({}, DType::F32, shape);
    const std::vector<CheckpointPiece> wanted{{name, role, shape, 0, shape.numel(), memory}};
    load_checkpoint(*comm, checkpoint, wanted);
    return test::values_of<float>(memory);
  }

  test::TemporaryDirectory directory_;
  Recipe recipe_;
  fs::path checkpoint_;
  ExpertSubset subset_{9, 1, {{1, 2, 6}, {0, 4, 7}}, {}, nlohmann::ordered_json::object()};
};

TEST_F(ExtractSubset, IsTheModelWithTheseExpertsKept) {
  const fs::path small = cut("small", 1);
  EXPECT_EQ(logits(small, nullptr), logits(checkpoint_, &subset_.routed));
  EXPECT_NE(logits(small, nullptr), logits(checkpoint_, nullptr));
  const ModelConfig& m = recipe_.model;
  const Shape gate{m.expert_ff, m.d_model};
  for (const char* role : {"weight", "exp_avg", "exp_avg_sq"}) {
    SCOPED_TRACE(role);
    EXPECT_EQ(array(small, "model.layers.1.mlp.experts.1.gate_proj.weight", role, gate),
              array(checkpoint_, "model.layers.1.mlp.experts.4.gate_proj.weight", role, gate));
    EXPECT_EQ(array(small, "model.layers.1.mlp.experts.3.gate_proj.weight", role, gate),  // shared
              array(checkpoint_, "model.layers.1.mlp.experts.8.gate_proj.weight", role, gate));
    const auto rows = array(small, "model.layers.0.mlp.gate.weight", role, {4, m.d_model});
    const auto all = array(checkpoint_, "model.layers.0.mlp.gate.weight", role, {9, m.d_model});
    for (std::int64_t i = 0; i < 4; ++i) {
      const auto begin = all.begin() + std::vector<std::int64_t>{1, 2, 6, 8}[idx(i)] * m.d_model;
      EXPECT_TRUE(std::equal(begin, begin + m.d_model, rows.begin() + i * m.d_model)) << i;
    }
  }
}

// One routed expert is less than a token picks.
TEST_F(ExtractSubset, FewerExpertsThanATokenPicks) {
  ASSERT_EQ(recipe_.model.routed_top_k(), 2);
  subset_.routed = {{6}, {7}};
  const fs::path small = cut("small", 1);
  EXPECT_EQ(recipe_in(small).model.routed_top_k(), 1);
  EXPECT_EQ(logits(small, nullptr), logits(checkpoint_, &subset_.routed));
}

// Files are read once, and verified on the way; those without anything that stays are not opened.
TEST_F(ExtractSubset, ReadsTheFilesItNeedsOnce) {
  std::int64_t shards = 0;
  for (const ManifestFile& f : read_manifest(checkpoint_).files)
    if (f.name.starts_with("shard-")) shards += f.bytes;
  std::int64_t whole = 0;
  for (const ManifestTensor& t : read_manifest(checkpoint_).tensors)
    whole += (t.end - t.begin) * static_cast<std::int64_t>(size_of(t.dtype));
  for (const int ranks : {1, 3}) {
    const ExtractedSubset done = cut_by("by" + std::to_string(ranks), ranks);
    std::int64_t written = 0;
    for (const ManifestTensor& t : read_manifest(done.checkpoint).tensors)
      written += (t.end - t.begin) * static_cast<std::int64_t>(size_of(t.dtype));
    EXPECT_EQ(done.bytes_read, shards) << ranks << " ranks";
    EXPECT_EQ(done.bytes, written);
    EXPECT_LT(written, whole);
    EXPECT_EQ(done.files_read, 2);
  }
}

TEST_F(ExtractSubset, IsTheSameFromAnyRanks) {
  const fs::path one = cut("one", 1);
  for (const int ranks : {2, 3}) EXPECT_TRUE(test::same_arrays(one, cut("by" + std::to_string(ranks), ranks)));
}

TEST_F(ExtractSubset, TrainsOnOnAnotherMesh) {
  Recipe alone = recipe_in(cut("alone", 2));
  alone.parallel.expert_parallel = 1;
  train_until(alone, 1, 12);
  const fs::path small = cut("small", 1);
  const Manifest manifest = test::verified(small);
  EXPECT_EQ(manifest.step, 6);
  EXPECT_EQ(manifest.extra.at("experts"), nlohmann::json::parse("[[1,2,6,8],[0,4,7,8]]"));
  Recipe r = recipe_in(small);
  EXPECT_EQ(r.model.num_experts, 4);
  r.parallel.expert_parallel = 3;
  train_until(r, 3, 9);
  r.parallel.expert_parallel = 1;
  train_until(r, 2, 12);
  EXPECT_EQ(read_manifest(latest(r.run.dir)).step, 12);
  const auto got = test::read_metrics(r.run.dir), want = test::read_metrics(alone.run.dir);
  ASSERT_EQ(got.size(), 6U);
  ASSERT_EQ(want.size(), 6U);
  EXPECT_EQ(want[0].at("step"), 7);
  EXPECT_LE(test::loss_deviation(got, want), 1e-5);
  EXPECT_LT(want[0].at("ce").get<double>(), 5.5);  // a trained model's, not that of fresh values (ln 257 = 5.55)
}

TEST_F(ExtractSubset, ItsRecipeFitsTheFewerExperts) {
  Recipe whole = recipe_;
  ModelConfig& m = whole.model;
  m.top_k = 6, m.pool_min = 5, m.pool_max = 8, m.eval_pool = 7;
  whole.parallel.expert_parallel = 8;
  const Recipe r = recipe_of_subset(whole, subset_, "subset.json", "somewhere/small");
  EXPECT_EQ(r.model.top_k, 4);
  EXPECT_EQ(r.model.pool_min, 3);
  EXPECT_EQ(r.model.pool_max, 3);
  EXPECT_EQ(r.model.eval_pool, 3);
  EXPECT_EQ(r.parallel.expert_parallel, 3);
  EXPECT_EQ(r.run.name, "small");
  r.model.validate();
  whole.model.pool = PoolMode::Label;
  EXPECT_EQ(recipe_of_subset(whole, subset_, "subset.json", "x").model.pool, PoolMode::Off);
  ExpertSubset uneven = subset_;
  uneven.routed[1].pop_back();
  EXPECT_THROW((void)recipe_of_subset(whole, uneven, "subset.json", "x"), UsageError);
  uneven.experts = 10;
  EXPECT_THROW((void)recipe_of_subset(whole, uneven, "subset.json", "x"), UsageError);
}

}  // namespace
}  // namespace emox
