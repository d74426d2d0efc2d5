// A manifest with a good checksum but bad content, as a faulty program would write it, is refused with the place.
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "runtime/core/version.h"
#include "runtime/files/files.h"
#include "tests/fuzz/manifest_edits.h"
#include "tests/parallel/checkpoint_model.h"

namespace emox {
namespace {

using nlohmann::json;
using test::io_error_of;
using test::part_of;
using test::whole;

class CheckpointManifest : public ::testing::Test {
 protected:
  /// x.weight [6, 2] in two parts, one a rank; y.weight [3] whole on rank 1.
  void SetUp() override {
    test::run_ranks(2, [&](Communicator& comm) {
      const CheckpointPiece x = whole("x.weight", x_), y = whole("y.weight", y_);
      std::vector<CheckpointPiece> mine;
      if (comm.rank() == 0) mine = {part_of(x, 0, 7)};
      if (comm.rank() == 1) mine = {part_of(x, 7, 12), y};
      save_checkpoint(comm, directory_.path(), 1, mine, test::some_meta());
    });
    good_ = json::parse(std::ifstream(file()));
  }

  std::filesystem::path path() const { return directory_.path() / "step-00000001"; }
  std::filesystem::path file() const { return path() / "manifest.json"; }
  /// Writes the content with a fitting checksum.
  void write(const json& content) const { std::ofstream(file()) << signed_text(content); }

  /// What reading says when the value at this JSON pointer is another one.
  std::string refusal(const std::string& pointer, const json& value) const {
    json content = good_;
    content[json::json_pointer(pointer)] = value;
    write(content);
    const std::string text = io_error_of([&] { read_manifest(path()); });
    const std::string head = file().string() + " cannot be used: ";
    EXPECT_EQ(text.substr(0, head.size()), head);
    return text.substr(std::min(text.size(), head.size()));
  }

  test::TemporaryDirectory directory_;
  Tensor x_ = test::random_tensor({6, 2}, 1), y_ = test::random_tensor({3}, 2);
  json good_;
};

TEST_F(CheckpointManifest, GoodContentIsReadAsItWasWritten) {
  const std::string text = try_read_text(file()).text;
  EXPECT_EQ(manifest_text(read_manifest(path())), text);
  write(good_);
  EXPECT_EQ(manifest_text(read_manifest(path())), text);
}

TEST_F(CheckpointManifest, NumbersAreNotBent) {
  // The JSON library would make 1, 1, 2^63 - 1 or a sum out of these.
  EXPECT_EQ(refusal("/step", 1.5), "step is 1.5: not a whole number of at least 0");
  EXPECT_EQ(refusal("/step", true), "step is true: not a whole number of at least 0");
  EXPECT_EQ(refusal("/step", "1"), "step is \"1\": not a whole number of at least 0");
  EXPECT_EQ(refusal("/tokens", -1), "tokens is -1: not a whole number of at least 0");
  EXPECT_EQ(refusal("/tokens", 9223372036854775808ULL),
            "tokens is 9223372036854775808: not a whole number of at least 0");
  EXPECT_EQ(refusal("/seed", -1), "seed is -1: not a whole number of at least 0");
  EXPECT_EQ(refusal("/seed", 1e3), "seed is 1000.0: not a whole number of at least 0");
  EXPECT_EQ(refusal("/world_size", 0), "world_size is 0: not a whole number in [1, 2147483647]");
  EXPECT_EQ(refusal("/files/1/bytes", nullptr), "files[1].bytes is null: not a whole number of at least 0");
}

TEST_F(CheckpointManifest, Files) {
  for (const char* name : {"", ".", "..", "../x.h5", "/x.h5"})
    EXPECT_EQ(refusal("/files/0/name", name),
              fmt::format("files[0].name is \"{}\": not the name of a file in the checkpoint", name));
  EXPECT_NE(refusal("/files/1/name", "shard-00000-of-00002.h5").find("not a file of its own"), std::string::npos);
  EXPECT_EQ(refusal("/files/0/xxh3_128", "abc"), "files[0].xxh3_128 is \"abc\": not a checksum");
  EXPECT_EQ(refusal("/files", json::object()), "files is {}: not a list");
  EXPECT_EQ(refusal("/tensors/0/file", "other.h5"), "tensors[0].file is \"other.h5\": not one of \"files\"");
}

TEST_F(CheckpointManifest, Pieces) {
  EXPECT_EQ(refusal("/tensors/0/begin", 7.0), "tensors[0].begin is 7.0: not a whole number in [0, 11]");
  EXPECT_EQ(refusal("/tensors/0/end", 13), "tensors[0].end is 13: not a whole number in [1, 12]");
  EXPECT_EQ(refusal("/tensors/0/end", 0), "tensors[0].end is 0: not a whole number in [1, 12]");
  EXPECT_EQ(refusal("/tensors/1/begin", 12), "tensors[1].begin is 12: not a whole number in [0, 11]");
  EXPECT_EQ(refusal("/tensors/0/name", "a/b"), "tensors[0].name is \"a/b\": not the name of a tensor");
  EXPECT_EQ(refusal("/tensors/0/role", "m"), "tensors[0].role is \"m\": not weight, exp_avg or exp_avg_sq");
  EXPECT_EQ(refusal("/tensors/0/dtype", "f31"), "tensors[0].dtype is \"f31\": not an element type");
  EXPECT_EQ(refusal("/tensors/0/shape", {6, -2}), "tensors[0].shape[1] is -2: not a whole number of at least 0");
  EXPECT_EQ(refusal("/tensors/0/shape", {1, 1, 1, 1, 12}),
            "tensors[0].shape is [1,1,1,1,12]: not a shape of at most 4 extents");
  EXPECT_NE(refusal("/tensors/0/shape", {1LL << 31, 1LL << 31}).find("not a shape: too many elements"),
            std::string::npos);
  EXPECT_EQ(refusal("/tensors/0/dataset", "x"), "tensors[0].dataset is \"x\": not the path of a dataset");
  EXPECT_EQ(refusal("/tensors/2/dataset", "/x/weight"),
            "tensors[2].dataset is \"/x/weight\": not used once in its file");
  EXPECT_EQ(refusal("/tensors/2", "y"), "tensors[2] is \"y\": not an object with \"name\"");
  json content = good_;
  content["tensors"][1].erase("end");
  write(content);
  EXPECT_NE(io_error_of([&] { read_manifest(path()); }).find("tensors[1] has no \"end\""), std::string::npos);
}

TEST_F(CheckpointManifest, Coverage) {
  EXPECT_EQ(refusal("/tensors/0/end", 6),
            "x.weight (weight) [6, 2]: elements [6, 7) are nowhere; "
            "shard-00000-of-00002.h5 ends before them, shard-00001-of-00002.h5 begins after them");
  EXPECT_EQ(refusal("/tensors/0/end", 9),
            "x.weight (weight) [6, 2]: elements [7, 9) are on "
            "shard-00000-of-00002.h5 and again on shard-00001-of-00002.h5");
  EXPECT_EQ(refusal("/tensors/1/shape", {2, 6}),
            "x.weight (weight) is f32 [6, 2] on shard-00000-of-00002.h5, f32 [2, 6] on shard-00001-of-00002.h5");
  EXPECT_EQ(refusal("/tensors/2/role", "exp_avg"), "y.weight has an exp_avg (shard-00001-of-00002.h5) but no weight");
}

TEST_F(CheckpointManifest, PlacementAndMesh) {
  EXPECT_EQ(refusal("/placement", 7), "placement is 7: not an object with \"expert_parallel\"");
  EXPECT_EQ(refusal("/placement/expert_parallel", 0),
            "placement.expert_parallel is 0: not a whole number in [1, 2147483647]");
  EXPECT_EQ(refusal("/placement/table/1/2", 2), "placement.table[1][2] is 2: not a whole number in [0, 1]");
  EXPECT_EQ(refusal("/placement/table/0", 1), "placement.table[0] is 1: not a list");
  EXPECT_EQ(refusal("/mesh/data_parallel", "1"), "mesh.data_parallel is \"1\": not a whole number in [1, 2147483647]");
  EXPECT_EQ(refusal("/mesh", json::object()), "mesh has no \"expert_parallel\"");
  json content = good_;
  content["placement"] = content["mesh"] = nullptr;
  write(content);
  EXPECT_TRUE(read_manifest(path()).placement.is_null());
}

TEST_F(CheckpointManifest, OtherFormatsAndVersions) {
  const std::string written = std::string("it was written by emox ") + kVersion + " in format version ";
  const std::string reads =
      std::string(", this emox (") + kVersion + ") reads versions 3 to 4: go on with the emox that wrote it";
  EXPECT_EQ(refusal("/version", 1), written + "1" + reads);
  EXPECT_EQ(refusal("/version", 5), written + "5" + reads + ", or with a newer one");
  EXPECT_EQ(refusal("/format", "other"), "it is not the manifest of an emox checkpoint");
  std::ofstream(file()) << "[1, 2]";
  EXPECT_NE(io_error_of([&] { read_manifest(path()); }).find("the content is [1,2]: not an object"), std::string::npos);
}

std::string nested(std::size_t depth) { return std::string(depth, '[') + "0" + std::string(depth, ']'); }

// The JSON library parses it in a loop, but copies and prints it by recursion.
TEST_F(CheckpointManifest, DeepNestingIsRefusedBeforeItExhaustsTheStack) {
  const std::string good = manifest_text(read_manifest(path()));
  const auto with_extra = [&](const std::string& extra) {
    const std::string key = "\"extra\": ";
    const std::size_t at = good.find(key) + key.size();
    std::string text = good;
    return test::signed_again(text.replace(at, good.find("\n }", at) + 3 - at, extra));
  };
  for (const std::size_t depth : {64, 1000, 1000000}) {
    const std::string text = io_error_of([&] { parse_manifest(with_extra(nested(depth)), "here"); });
    EXPECT_EQ(text, "here cannot be used: it is nested more than 64 deep");
  }
  // What may be read may be written, and only that. Brackets in texts nest nothing.
  const std::string most = "[\"" + std::string(100, '[') + "\\\"[\"," + nested(62) + "]";
  Manifest manifest = parse_manifest(with_extra(most), "here");
  EXPECT_EQ(manifest.extra, json::parse(most));
  EXPECT_EQ(parse_manifest(manifest_text(manifest), "here").extra, manifest.extra);
  manifest.extra = json::array({manifest.extra});
  EXPECT_EQ(io_error_of([&] { manifest_text(manifest); }),
            "the checkpoint's recipe or extra data cannot be written: it is nested more than 64 deep");
  for (const char* text : {"[", "[[[[", "{\"a\": [", "\"[", "]]]]"})
    EXPECT_NE(io_error_of([&] { parse_manifest(text, "here"); }).find("here is damaged: "), std::string::npos);
}

// C functions would end them there, and take them for others.
TEST_F(CheckpointManifest, NamesWithAZeroInThem) {
  const std::string file("shard-00000-of-00002.h5\0x", 25), dataset("/x/weight\0", 10);
  json content = good_;
  content["files"][0]["name"] = content["tensors"][0]["file"] = file;
  write(content);
  EXPECT_NE(io_error_of([&] { read_manifest(path()); }).find("not the name of a file in the checkpoint"),
            std::string::npos);
  EXPECT_EQ(refusal("/tensors/2/dataset", dataset),
            "tensors[2].dataset is \"/x/weight\\u0000\": not the path of a dataset");
}

// Whatever is wanted: the file passes by from its first byte to its last.
TEST_F(CheckpointManifest, EveryDatasetIsComparedWithItsOwnChecksum) {
  json content = good_;
  content["tensors"][1]["xxh3_128"] = std::string(32, '0');
  write(content);
  const auto comm = make_self_communicator();
  for (const auto& [begin, end] : {std::pair<std::int64_t, std::int64_t>{0, 11}, {8, 12}, {7, 12}, {0, 12}, {0, 0}}) {
    const Tensor memory({}, DType::F32, {6, 2});
    const CheckpointPiece wanted = part_of(whole("x.weight", memory), begin, end);
    const std::string text = io_error_of([&] { load_checkpoint(*comm, path(), std::span(&wanted, 1)); });
    EXPECT_NE(text.find("x.weight (weight), elements [7, 12), in shard-00001-of-00002.h5 is damaged"),
              std::string::npos)
        << text;
  }
}

TEST_F(CheckpointManifest, OffsetsLieInTheirFiles) {
  const json file = good_["files"][1];
  ASSERT_EQ(good_["tensors"][1]["file"], file["name"]);
  const std::int64_t bytes = file["bytes"];
  EXPECT_NE(refusal("/tensors/1/offset", bytes - 19).find("x.weight (weight): its 20 bytes from"), std::string::npos);
  EXPECT_NE(refusal("/tensors/1/offset", bytes + 1).find("tensors[1].offset"), std::string::npos);
  EXPECT_NE(refusal("/tensors/1/offset", -1).find("tensors[1].offset"), std::string::npos);
  json content = good_;
  content["tensors"][1].erase("offset");
  write(content);
  EXPECT_NE(io_error_of([&] { read_manifest(path()); }).find("offset"), std::string::npos);
  // Elsewhere in the file are other elements, which the dataset's checksum tells.
  content = good_;
  content["tensors"][1]["offset"] = content["tensors"][1]["offset"].get<std::int64_t>() - 4;
  write(content);
  const Tensor memory({}, DType::F32, {6, 2});
  const CheckpointPiece wanted = whole("x.weight", memory);
  const auto comm = make_self_communicator();
  EXPECT_NE(io_error_of([&] { load_checkpoint(*comm, path(), std::span(&wanted, 1)); }).find("is damaged"),
            std::string::npos);
}

/// As checkpoints were before they said where their elements lie.
json version_3(json content) {
  content["version"] = 3;
  for (json& t : content["tensors"]) t.erase("offset");
  return content;
}

TEST_F(CheckpointManifest, VersionThreeLoads) {
  write(version_3(good_));
  EXPECT_EQ(read_manifest(path()).version, 3);
  for (const int ranks : {1, 2, 3})
    test::run_ranks(ranks, [&](Communicator& comm) {
      const Tensor memory({}, DType::F32, {6, 2});
      const CheckpointPiece wanted = whole("x.weight", memory);
      const CheckpointPiece mine = part_of(wanted, 12 * comm.rank() / ranks, 12 * (comm.rank() + 1) / ranks);
      load_checkpoint(comm, path(), std::span(&mine, 1));
      EXPECT_TRUE(test::same_bits(mine.view, part_of(whole("x.weight", x_), mine.begin, mine.end).view)) << ranks;
    });
}

// Older checkpoints are found by the names of their datasets.
TEST_F(CheckpointManifest, ADatasetThatIsNotWhatTheManifestSays) {
  const auto comm = make_self_communicator();
  const Tensor memory({}, DType::F32, {6, 2});
  const auto load = [&](const char* key, const json& value) {
    json content = version_3(good_);
    content["tensors"][1][key] = value;
    write(content);
    const CheckpointPiece wanted = whole("x.weight", memory);
    return io_error_of([&] { load_checkpoint(*comm, path(), std::span(&wanted, 1)); });
  };
  EXPECT_NE(load("dataset", "/z/weight").find("cannot find /z/weight in"), std::string::npos);
  json content = version_3(good_);
  for (const int i : {0, 1}) content["tensors"][i]["dtype"] = "i32";
  write(content);
  const Tensor integers({}, DType::I32, {6, 2});
  const CheckpointPiece wanted = whole("x.weight", integers);
  const std::string text = io_error_of([&] { load_checkpoint(*comm, path(), std::span(&wanted, 1)); });
  EXPECT_NE(text.find("shard-00000-of-00002.h5 is not i32 [7]"), std::string::npos) << text;
}

}  // namespace
}  // namespace emox
