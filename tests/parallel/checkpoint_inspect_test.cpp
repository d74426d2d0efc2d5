// Looking into checkpoints without a model: arrays and families, statistics, and all damage that there is.
#include "parallel/checkpoint/inspect.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <mutex>
#include <nlohmann/json.hpp>

#include "parallel/checkpoint/open_files.h"
#include "parallel/checkpoint/verify.h"
#include "runtime/core/idx.h"
#include "runtime/files/atomic_file.h"
#include "runtime/files/files.h"
#include "tests/parallel/checkpoint_model.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using test::CheckpointModel;
using test::flip_byte;
using test::io_error_of;
using test::run_ranks;
using test::save_model;
using test::tensor_of;
using test::whole;

/// Saves these arrays, each cut into as many consecutive parts as there are ranks.
fs::path save_sliced(const fs::path& directory, std::int64_t step, const std::vector<CheckpointPiece>& arrays,
                     int ranks) {
  run_ranks(ranks, [&](Communicator& comm) {
    std::vector<CheckpointPiece> mine;
    for (const CheckpointPiece& p : arrays) {
      const std::int64_t begin = p.end * comm.rank() / ranks, end = p.end * (comm.rank() + 1) / ranks;
      if (begin < end || (p.end == 0 && comm.rank() == 0)) mine.push_back(test::part_of(p, begin, end));
    }
    save_checkpoint(comm, directory, step, mine, test::some_meta());
  });
  return directory / fmt::format("step-{:08}", step);
}

bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }
bool same(const ArrayStatistics& a, const ArrayStatistics& b) {
  return a.elements == b.elements && a.zeros == b.zeros && a.not_finite == b.not_finite && same(a.sum, b.sum) &&
         same(a.sum_squares, b.sum_squares) && a.least == b.least && a.most == b.most;
}

/// On so many ranks; all of them must agree.
std::vector<ArrayStatistics> measured(const fs::path& checkpoint, int ranks) {
  std::vector<ArrayStatistics> first;
  std::mutex mutex;
  run_ranks(ranks, [&](Communicator& comm) {
    const Manifest manifest = read_manifest(checkpoint);
    const auto arrays = arrays_of(manifest);
    verify_files(comm, checkpoint, manifest, files_of(arrays));
    auto got = measure_arrays(comm, checkpoint, arrays);
    const std::lock_guard lock(mutex);
    if (first.empty()) {
      first = std::move(got);
      return;
    }
    ASSERT_EQ(got.size(), first.size());
    for (std::size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(same(got[i], first[i]));
  });
  return first;
}

CheckpointSurvey surveyed(const fs::path& checkpoint, int ranks) {
  CheckpointSurvey first;
  std::mutex mutex;
  run_ranks(ranks, [&](Communicator& comm) {
    const CheckpointSurvey got = survey_checkpoint(comm, checkpoint);
    const std::lock_guard lock(mutex);
    if (first.path.empty()) first = got;
    EXPECT_EQ(got.damage, first.damage);
    EXPECT_EQ(got.path, checkpoint);
  });
  return first;
}

TEST(CheckpointArrays, NamesFoldIntoFamilies) {
  EXPECT_EQ(family_of("model.layers.12.mlp.experts.3.up_proj.weight"), "model.layers.*.mlp.experts.*.up_proj.weight");
  EXPECT_EQ(family_of("model.layers.12.mlp.experts.8.up_proj.weight", 8),
            "model.layers.*.mlp.experts.8.up_proj.weight");
  EXPECT_EQ(family_of("model.layers.12.mlp.experts.7.up_proj.weight", 8),
            "model.layers.*.mlp.experts.*.up_proj.weight");
  EXPECT_EQ(family_of("lm_head.weight"), "lm_head.weight");
  EXPECT_EQ(expert_of("model.layers.12.mlp.experts.3.up_proj.weight")->layer, 12);
  EXPECT_EQ(expert_of("model.layers.12.mlp.experts.3.up_proj.weight")->expert, 3);
  EXPECT_FALSE(expert_of("model.layers.12.mlp.gate.weight").has_value());
  EXPECT_FALSE(expert_of("experts.weight").has_value());
  EXPECT_TRUE(natural_less("a.2.x", "a.10.x"));
  EXPECT_FALSE(natural_less("a.10.x", "a.2.x"));
  EXPECT_TRUE(natural_less("a", "a.0"));
}

TEST(CheckpointArrays, EveryArrayIsInOneFamily) {
  const test::TemporaryDirectory directory;
  const Manifest manifest = read_manifest(save_model(directory.path(), 1, 5, 2));
  const auto arrays = arrays_of(manifest);
  EXPECT_EQ(arrays.size(), 3 * CheckpointModel(5).pieces(false).size());
  std::size_t members = 0;
  for (const ArrayFamily& f : families_of(arrays, 2)) {
    members += f.members.size();
    if (f.pattern == "model.layers.*.mlp.experts.*.up_proj.weight") {
      EXPECT_EQ(f.count, "2x2");
    }
    if (f.pattern == "model.layers.*.mlp.experts.2.up_proj.weight") {
      EXPECT_EQ(f.count, "2");
    }
    if (f.pattern == "model.scale") {
      EXPECT_EQ(f.count, "1");
    }
  }
  EXPECT_EQ(members, arrays.size());
  EXPECT_EQ(files_of(arrays), (std::vector<std::string>{"shard-00000-of-00002.h5", "shard-00001-of-00002.h5"}));
}

TEST(CheckpointShares, CoverEverythingOnceAndAreEven) {
  std::vector<std::int64_t> bytes;
  for (int i = 0; i < 1000; ++i) bytes.push_back(1 + i * 7919 % 100);
  for (const int size : {1, 2, 3, 7, 2000}) {
    std::size_t at = 0;
    for (int r = 0; r < size; ++r) {
      const auto [begin, end] = share_of(bytes, r, size);
      EXPECT_EQ(begin, at);
      EXPECT_LE(begin, end);
      std::int64_t mine = 0, all = 0;
      for (std::size_t i = 0; i < bytes.size(); ++i) all += bytes[i], mine += begin <= i && i < end ? bytes[i] : 0;
      EXPECT_LE(mine, all / size + 101);
      at = end;
    }
    EXPECT_EQ(at, bytes.size());
  }
  EXPECT_EQ(share_of({}, 1, 3), (std::pair<std::size_t, std::size_t>(0, 0)));
}

/// 1, 2, ..., n; larger than a block, so that blocks must join.
TEST(CheckpointStatistics, AreTheClosedForms) {
  const std::int64_t n = kBlockBytes / 4 + 12345;
  std::vector<double> numbers(idx(n));
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<double>(i + 1);
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  const Tensor rising = tensor_of(numbers, {n}), odd = tensor_of<float>({0, -3, nan, 4, -inf, 0}, {2, 3});
  const Tensor small = tensor_of<float>({3, -4}, {2}), counts = tensor_of<std::int64_t>({-2, 5}, {2});
  const Tensor nothing({}, DType::F32, {0, 4}), one = tensor_of<float>({-2}, {});
  const test::TemporaryDirectory directory;
  const auto path = save_sliced(directory.path(), 1,
                                {whole("counts", counts), whole("nothing", nothing), whole("odd", odd),
                                 whole("rising", rising), whole("scalar", one), whole("small", small)},
                                2);
  const auto s = measured(path, 1);
  ASSERT_EQ(s.size(), 6U);
  EXPECT_EQ(s[0].sum_squares, 29);
  EXPECT_EQ(s[0].least, -2);
  EXPECT_EQ(s[0].most, 5);
  EXPECT_EQ(s[0].sum, 3);
  EXPECT_EQ(s[1].l2(), 0);
  EXPECT_EQ(s[1].rms(), 0);
  EXPECT_EQ(s[1].most, 0);
  EXPECT_TRUE(std::isnan(s[2].sum_squares));
  EXPECT_EQ(s[2].zeros, 2);
  EXPECT_EQ(s[2].not_finite, 2);
  EXPECT_EQ(s[2].least, -inf);
  EXPECT_EQ(s[2].most, 4);
  // A lane of a block adds so many numbers, each with at most half a unit of the last place.
  constexpr double kSummation = static_cast<double>(kBlockBytes) / 8 / 8 * 0x1p-53;
  const auto x = static_cast<double>(n);
  EXPECT_NEAR(s[3].sum / (x * (x + 1) / 2), 1, kSummation);
  EXPECT_NEAR(s[3].sum_squares / (x * (x + 1) * (2 * x + 1) / 6), 1, kSummation);
  EXPECT_EQ(s[3].least, 1);
  EXPECT_EQ(s[3].most, x);
  EXPECT_EQ(s[3].zeros, 0);
  EXPECT_EQ(s[3].elements, n);
  EXPECT_EQ(s[4].l2(), 2);
  EXPECT_EQ(s[4].rms(), 2);
  EXPECT_EQ(s[5].l2(), 5);
  EXPECT_EQ(s[5].rms(), std::sqrt(12.5));
  EXPECT_EQ(s[5].mean(), -0.5);
  const auto three = measured(path, 3);
  ASSERT_EQ(three.size(), s.size());
  for (std::size_t i = 0; i < s.size(); ++i) EXPECT_TRUE(same(three[i], s[i])) << i;
}

TEST(CheckpointStatistics, HoldOneBlockOfAnArray) {
  const test::TemporaryDirectory directory;
  fs::path path;
  {
    const Tensor large({}, DType::F32, {kBlockBytes});
    path = save_sliced(directory.path(), 1, {whole("large", large)}, 1);
  }
  const std::int64_t before = memory_stats().allocated;
  reset_memory_peak();
  EXPECT_EQ(measured(path, 1).at(0).zeros, kBlockBytes);
  EXPECT_TRUE(surveyed(path, 1).intact());
  EXPECT_LT(memory_stats().peak - before, kBlockBytes + 65536);
}

class Survey : public ::testing::Test {
 protected:
  Survey() : path_(save_model(directory_.path(), 10, 3, 3)) {}
  fs::path shard(int rank) const { return path_ / fmt::format("shard-{:05}-of-00003.h5", rank); }
  /// Each message holds its text; nothing else is damaged. On 1 and on 3 ranks.
  void expect_damage(const std::vector<std::string>& texts) const {
    for (const int ranks : {1, 3}) {
      const CheckpointSurvey survey = surveyed(path_, ranks);
      ASSERT_EQ(survey.damage.size(), texts.size()) << fmt::format("{}", fmt::join(survey.damage, "\n"));
      for (std::size_t i = 0; i < texts.size(); ++i)
        EXPECT_NE(survey.damage[i].find(texts[i]), std::string::npos) << survey.damage[i];
    }
  }
  /// Changes the manifest and signs it again, as a faulty program would have written it.
  template <typename Change>
  void rewrite_manifest(const Change& change) const {
    auto content = nlohmann::json::parse(read_text(path_ / "manifest.json"));
    change(content);
    AtomicFile file(path_ / "manifest.json");
    file.write(signed_text(content));
    file.commit();
  }

  test::TemporaryDirectory directory_;
  fs::path path_;
};

TEST_F(Survey, AnIntactOne) {
  expect_damage({});
  const CheckpointSurvey survey = surveyed(path_, 2);
  const Manifest manifest = read_manifest(path_);
  EXPECT_EQ(survey.files, 4);  // with the index
  EXPECT_EQ(survey.datasets, static_cast<std::int64_t>(manifest.tensors.size()));
  std::int64_t bytes = 0;
  for (const ManifestFile& f : manifest.files) bytes += f.bytes;
  EXPECT_EQ(survey.bytes, bytes);
  EXPECT_GT(survey.seconds, 0);
}

TEST_F(Survey, AllDamagedFilesAreNamed) {
  flip_byte(shard(0), fs::file_size(shard(0)) / 2);
  fs::resize_file(shard(1), fs::file_size(shard(1)) - 1);
  fs::remove(shard(2));
  expect_damage({"shard-00000-of-00003.h5 is damaged: checksum",
                 "shard-00001-of-00003.h5 is damaged: ", "shard-00002-of-00003.h5 is missing"});
  run_ranks(3, [&](Communicator& comm) {
    const Manifest manifest = read_manifest(path_);
    const std::string text = io_error_of([&] { verify_files(comm, path_, manifest, files_of(arrays_of(manifest))); });
    EXPECT_NE(text.find("shard-00000-of-00003.h5 is damaged"), std::string::npos) << text;
    EXPECT_NE(text.find("2 more of its files are damaged"), std::string::npos) << text;
    // What is not asked for is not looked at.
    const std::string one = io_error_of([&] { verify_files(comm, path_, manifest, {"shard-00002-of-00003.h5"}); });
    EXPECT_NE(one.find("shard-00002-of-00003.h5 is missing"), std::string::npos) << one;
    verify_files(comm, path_, manifest, {});
  });
}

TEST_F(Survey, ADamagedManifestIsNamed) {
  flip_byte(path_ / "manifest.json", fs::file_size(path_ / "manifest.json") / 2);
  expect_damage({"manifest.json"});
  fs::remove(path_ / "manifest.json");
  expect_damage({"manifest.json"});
}

TEST_F(Survey, AWrongDirectoryIsNamed) {
  const fs::path moved = directory_.path() / "step-00000020";
  fs::rename(path_, moved);
  path_ = moved;
  expect_damage({"step-00000020 holds step 10"});
}

// Files may be as they were written and still not be what the manifest says.
TEST_F(Survey, DatasetsAreComparedWithTheManifest) {
  rewrite_manifest([](nlohmann::json& content) {
    auto& tensors = content.at("tensors");
    tensors[0].at("xxh3_128") = std::string(32, '0');
    tensors[5].at("dataset") = "/nowhere";
  });
  const Manifest manifest = read_manifest(path_);
  for (const int ranks : {1, 3}) {
    const CheckpointSurvey survey = surveyed(path_, ranks);
    ASSERT_EQ(survey.damage.size(), 2U);
    const std::string all = survey.damage[0] + survey.damage[1];
    EXPECT_NE(all.find(manifest.tensors[0].dataset + " in "), std::string::npos) << all;
    EXPECT_NE(all.find("the manifest says 00000000000000000000000000000000"), std::string::npos) << all;
    EXPECT_NE(all.find("cannot find /nowhere"), std::string::npos) << all;
  }
}

TEST_F(Survey, OtherTypesAndShapesAreNoticed) {
  rewrite_manifest([](nlohmann::json& content) {
    for (auto& t : content.at("tensors"))
      if (t.at("name") == "model.embed_tokens.weight") t.at("shape") = {8, 97}, t.at("begin") = 0, t.at("end") = 776;
  });
  for (const std::string& message : surveyed(path_, 2).damage)
    EXPECT_NE(message.find("is not f32 [8, 97]"), std::string::npos) << message;
  EXPECT_EQ(surveyed(path_, 2).damage.size(), 3U);
}

}  // namespace
}  // namespace emox
