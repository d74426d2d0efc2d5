// What is saved comes back bit for bit, on any number of ranks, in files laid out as documented.
#include <gtest/gtest.h>

#include <chrono>
#include <set>
#include <thread>

#include "parallel/checkpoint/layout.h"
#include "parallel/checkpoint/manifest.h"
#include "runtime/core/idx.h"
#include "runtime/core/version.h"
#include "tests/parallel/checkpoint_model.h"

namespace emox {
namespace {

using test::CheckpointModel;
using test::io_error_of;
using test::run_ranks;
using test::save_model;
using test::TemporaryDirectory;

void expect_loads(const std::filesystem::path& path, int ranks, unsigned seed) {
  run_ranks(ranks, [&](Communicator& comm) {
    const CheckpointModel want(seed);
    const CheckpointModel got(seed + 1000);
    const Manifest manifest = load_checkpoint(comm, path, got.pieces());
    if (!test::same_bits(got.pieces(), want.pieces())) throw std::runtime_error("loaded tensors differ");
    if (manifest.step != 12 || manifest.tokens != 4096) throw std::runtime_error("loaded meta differs");
  });
}

TEST(Checkpoint, RoundTripAcrossRankCounts) {
  for (const int writers : {1, 2, 4}) {
    const TemporaryDirectory directory;
    const auto path = save_model(directory.path(), 12, 5, writers);
    EXPECT_EQ(path, directory.path() / "step-00000012");
    EXPECT_EQ(test::names_in(path).size(), idx(writers) + 2);  // index and manifest
    for (const int readers : {1, 2, 4}) expect_loads(path, readers, 5);
  }
}

TEST(Checkpoint, ManifestHoldsTheMeta) {
  const TemporaryDirectory directory;
  const Manifest m = read_manifest(save_model(directory.path(), 12, 5, 2));
  const CheckpointMeta meta = test::some_meta();
  EXPECT_EQ(m.step, 12);
  EXPECT_EQ(m.tokens, meta.tokens);
  EXPECT_EQ(m.seed, meta.seed);
  EXPECT_EQ(m.recipe, meta.recipe);
  EXPECT_EQ(m.extra, meta.extra);
  EXPECT_EQ(m.world_size, 2);
  ASSERT_EQ(m.files.size(), 3U);
  EXPECT_EQ(m.files[1].name, "shard-00001-of-00002.h5");
  EXPECT_EQ(m.files[2].name, "index.h5");
  EXPECT_EQ(m.libraries.at("emox"), kVersion);
  EXPECT_EQ(m.libraries.at("hdf5"), hdf5_version());
  EXPECT_EQ(m.placement, meta.placement);
  EXPECT_EQ(m.mesh, meta.mesh);
  EXPECT_EQ(m.tensors.size(), CheckpointModel(5).pieces().size());
}

TEST(Checkpoint, MoreRanksThanTensors) {
  const TemporaryDirectory directory;
  run_ranks(3, [&](Communicator& comm) {
    const Tensor x = test::random_tensor({4}, 1);
    const std::vector list = {test::whole("x.weight", x)};
    const auto mine = test::divide_among_ranks(list, comm.rank(), comm.size());
    const auto path = save_checkpoint(comm, directory.path(), 1, mine, {});
    const Tensor y({}, DType::F32, {4});
    load_checkpoint(comm, path, std::vector{test::whole("x.weight", y)});
    if (!test::same_bits(x, y)) throw std::runtime_error("loaded tensor differs");
  });
}

TEST(Checkpoint, OtherElementTypesAndShapes) {
  const TemporaryDirectory directory;
  const auto comm = make_self_communicator();
  const Tensor a = test::tensor_of<std::int64_t>({1, -2, 3, 4, 5, 6, 7, 8}, {2, 2, 2, 1});
  const Tensor b = test::tensor_of<double>({1.0 / 3}, {1});
  const Tensor c = test::tensor_of<std::uint8_t>({9, 255}, {2});
  const Tensor empty({}, DType::F32, {0, 3});
  using test::whole;
  const auto path = save_checkpoint(
      *comm, directory.path(), 0, std::vector{whole("a", a), whole("b", b), whole("c", c), whole("empty", empty)}, {});
  const Tensor a2({}, DType::I64, {2, 2, 2, 1}), b2({}, DType::F64, {1}), c2({}, DType::U8, {2});
  load_checkpoint(*comm, path, std::vector{whole("a", a2), whole("b", b2), whole("c", c2), whole("empty", empty)});
  EXPECT_TRUE(test::same_bits(a, a2) && test::same_bits(b, b2) && test::same_bits(c, c2));
}

TEST(Checkpoint, EqualStateGivesEqualFiles) {
  const TemporaryDirectory one, two;
  const Manifest a = read_manifest(save_model(one.path(), 3, 5, 2));
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // no file holds the time
  const Manifest b = read_manifest(save_model(two.path(), 3, 5, 2));
  EXPECT_TRUE(manifest_text(a) == manifest_text(b));
}

TEST(Checkpoint, SavingAStepAgainMovesTheOldOneAside) {
  const TemporaryDirectory directory;
  save_model(directory.path(), 12, 3, 2);
  const auto path = save_model(directory.path(), 12, 5, 1);
  expect_loads(path, 2, 5);
  const auto names = test::names_in(directory.path());
  ASSERT_EQ(names.size(), 2U);
  EXPECT_EQ(names[0], "step-00000012");
  EXPECT_TRUE(names[1].starts_with("step-00000012.aside-")) << names[1];
  expect_loads(directory.path() / names[1], 2, 3);
}

TEST(Checkpoint, WeightsAloneLoadFromAFullCheckpointAndNotTheReverse) {
  const TemporaryDirectory directory;
  const auto comm = make_self_communicator();
  const CheckpointModel model(5), other(9);
  const auto full = save_model(directory.path(), 1, 5);
  load_checkpoint(*comm, full, other.pieces(false));
  EXPECT_TRUE(test::same_bits(other.pieces(false), model.pieces(false)));
  EXPECT_FALSE(test::same_bits(other.pieces(), model.pieces()));

  const auto weights = save_checkpoint(*comm, directory.path(), 2, model.pieces(false), {});
  const std::string text = io_error_of([&] { load_checkpoint(*comm, weights, other.pieces()); });
  EXPECT_NE(text.find("has no model.embed_tokens.weight (exp_avg)"), std::string::npos) << text;
}

TEST(Checkpoint, EveryExpertIsAGroup) {
  const TemporaryDirectory directory;
  const auto path = save_model(directory.path(), 1, 5, 2);
  if (test::run_command("h5ls --version").exit_code != 0) GTEST_SKIP() << "h5ls is not installed";
  int experts = 0;
  for (int r = 0; r < 2; ++r) {
    const auto shard = path / shard_file_name(r, 2);
    const std::string listing = test::run_command("h5ls -r " + shard.string()).output;
    for (int l = 0; l < 2; ++l)
      for (int e = 0; e < 3; ++e) {
        const std::string group = fmt::format("/model/layers/{}/mlp/experts/{}", l, e);
        if (listing.find(group + " ") == std::string::npos) continue;
        ++experts;
        for (const char* part : {"gate_proj", "up_proj", "down_proj"})
          for (const char* array : {"weight", "exp_avg", "exp_avg_sq"})
            EXPECT_NE(listing.find(fmt::format("{}/{}/{} ", group, part, array)), std::string::npos) << listing;
      }
  }
  EXPECT_EQ(experts, 6);
}

TEST(CheckpointLayout, WorkIsDividedByBytesAndExpertsStayWhole) {
  std::vector<Tensor> memory;
  std::vector<CheckpointPiece> list;
  const auto add = [&](const std::string& name, Shape shape) {
    memory.emplace_back(Device{}, DType::F32, shape);
    test::add_whole(list, name, memory.back(), memory.back(), memory.back());
  };
  for (int e = 0; e < 16; ++e)
    for (const char* part : {"gate_proj", "up_proj", "down_proj"})
      add(fmt::format("model.layers.0.mlp.experts.{}.{}.weight", e, part), {16, 8});
  add("model.embed_tokens.weight", {100, 8});
  add("lm_head.weight", {100, 8});
  double total = 0;
  for (const CheckpointPiece& p : list) total += static_cast<double>(p.view.bytes());
  std::set<std::pair<std::string, std::string>> given;
  std::set<std::pair<std::string, int>> experts;
  for (int rank = 0; rank < 4; ++rank) {
    double bytes = 0;
    for (const CheckpointPiece& p : test::divide_among_ranks(list, rank, 4)) {
      bytes += static_cast<double>(p.view.bytes());
      EXPECT_TRUE(given.emplace(p.name, p.role).second) << p.name;
      const std::size_t at = p.name.find(".experts.");
      if (at != std::string::npos) experts.emplace(p.name.substr(0, p.name.find('.', at + 9)), rank);
    }
    EXPECT_NEAR(bytes / total, 0.25, 0.05);
  }
  EXPECT_EQ(given.size(), list.size());
  EXPECT_EQ(experts.size(), 16U);
}

TEST(CheckpointLayout, NamesOfStepsAndDatasets) {
  EXPECT_EQ(step_directory_name(123), "step-00000123");
  EXPECT_EQ(step_directory_name(1234567890), "step-1234567890");
  EXPECT_EQ(step_of_directory("step-00000123"), 123);
  EXPECT_EQ(step_of_directory("step-1234567890"), 1234567890);
  for (const char* name : {"step-123", "step-00000123.tmp", "step-", "other", "step-0000012x", "step--0000123"})
    EXPECT_FALSE(step_of_directory(name)) << name;
  EXPECT_TRUE(is_unfinished("step-00000123.tmp"));
  EXPECT_TRUE(is_unfinished("step-00000123.tmp-removed"));
  EXPECT_FALSE(is_unfinished("step-00000123"));
  EXPECT_FALSE(is_unfinished("notes.tmp"));
  EXPECT_EQ(dataset_path("a.0.weight", "weight"), "/a/0/weight");
  EXPECT_EQ(dataset_path("a.0.weight", "exp_avg"), "/a/0/exp_avg");
  EXPECT_EQ(dataset_path("a.bias", "exp_avg_sq"), "/a/bias.exp_avg_sq");
  EXPECT_EQ(later_dataset_path("a.0.weight", "exp_avg", 12), "/a/0/exp_avg.from-12");
}

TEST(Checkpoint, AMissingTensorAndAnotherShapeAreNamed) {
  const TemporaryDirectory directory;
  const auto path = save_model(directory.path(), 1, 5, 2);
  run_ranks(2, [&](Communicator& comm) {
    const auto refusal = [&](const std::string& name, const Tensor& t) {
      return io_error_of([&] { load_checkpoint(comm, path, std::vector{test::whole(name, t)}); });
    };
    std::string text = refusal("model.layers.2.mlp.gate.weight", Tensor({}, DType::F32, {3, 8}));
    EXPECT_NE(text.find("has no model.layers.2.mlp.gate.weight"), std::string::npos) << text;
    text = refusal("model.layers.1.mlp.gate.weight", Tensor({}, DType::F32, {4, 8}));
    EXPECT_NE(text.find("model.layers.1.mlp.gate.weight (weight) is " + Shape{3, 8}.str()), std::string::npos) << text;
    EXPECT_NE(text.find(Shape{4, 8}.str() + " here"), std::string::npos) << text;
    text = refusal("model.layers.1.mlp.gate.weight", Tensor({}, DType::F64, {3, 8}));
    EXPECT_NE(text.find("holds f32"), std::string::npos) << text;
  });
}

}  // namespace
}  // namespace emox
