// A checkpoint is readable without emox: h5py finds every array, equal bit for bit, in the shards and in index.h5.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "parallel/checkpoint/layout.h"
#include "tests/parallel/checkpoint_model.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class CheckpointH5py : public ::testing::Test {
 protected:
  /// Two ranks; the embedding and its moments are cut between them, the rest is divided.
  void SetUp() override {
    test::run_ranks(2, [&](Communicator& comm) {
      const test::CheckpointModel model(5);
      std::vector<CheckpointPiece> cut, shared;
      for (const CheckpointPiece& p : model.pieces())
        (p.name == "model.embed_tokens.weight" ? cut : shared).push_back(p);
      std::vector<CheckpointPiece> mine = test::divide_among_ranks(shared, comm.rank(), comm.size());
      for (const CheckpointPiece& p : cut)
        mine.push_back(comm.rank() == 0 ? test::part_of(p, 0, 301) : test::part_of(p, 301, p.end));
      save_checkpoint(comm, directory_.path(), 7, mine, test::some_meta());
      if (comm.rank() == 0) write_expected(model.pieces());
    });
  }

  fs::path checkpoint() const { return directory_.path() / "step-00000007"; }
  fs::path expected() const { return directory_.path() / "expected"; }

  void write_expected(const std::vector<CheckpointPiece>& pieces) const {
    fs::create_directory(expected());
    json list = json::array();
    for (const CheckpointPiece& p : pieces) {
      json shape = json::array();
      for (int i = 0; i < p.shape.rank(); ++i) shape.push_back(p.shape[i]);
      const std::string file = std::to_string(list.size());
      std::ofstream(expected() / file, std::ios::binary)
          .write(static_cast<const char*>(p.view.raw()), static_cast<std::streamsize>(p.view.bytes()));
      list.push_back({{"name", p.name},
                      {"role", p.role},
                      {"path", dataset_path(p.name, p.role)},
                      {"dtype", std::string(name_of(p.view.dtype()))},
                      {"shape", shape},
                      {"bytes", file}});
    }
    std::ofstream(expected() / "arrays.json") << list;
  }

  /// What the reader says, started in `from`. Debian's Python: the one that python3-h5py belongs to.
  test::CommandResult read(const fs::path& path, const std::string& from = ".") const {
    return test::run_command("cd " + from + " && /usr/bin/python3 " EMOX_SOURCE_DIR "/tests/support/read_index.py " +
                             path.string() + " " + expected().string());
  }

  test::TemporaryDirectory directory_;
};

TEST_F(CheckpointH5py, IsInstalled) {
  EXPECT_EQ(test::run_command("/usr/bin/python3 -c \"import h5py\"").exit_code, 0)
      << "launch/packages.sh --tests installs python3-h5py";
}

TEST_F(CheckpointH5py, ReadsEveryArray) {
  // In place, by a relative path, through the link, and after the directory has moved.
  const fs::path moved = directory_.path() / "elsewhere" / "copy";
  fs::create_directory(moved.parent_path());
  fs::copy(checkpoint(), moved, fs::copy_options::recursive);
  const std::string here = directory_.path().string();
  for (const test::CommandResult& r : {read(checkpoint()), read(checkpoint(), "/"), read("step-00000007", here),
                                       read("latest", here), read(moved), read(".", checkpoint().string())}) {
    EXPECT_EQ(r.exit_code, 0) << r.output;
    EXPECT_NE(r.output.find("datasets of 2 shards are equal"), std::string::npos) << r.output;
    // 26 parameters and their moments; the embedding and its moments are in two pieces each.
    EXPECT_NE(r.output.find("78 arrays of index.h5 are equal: 75 by external link, 3 virtual"), std::string::npos)
        << r.output;
  }
  fs::remove_all(checkpoint());
  EXPECT_EQ(read(moved).exit_code, 0);
}

// Through index.h5 its elements would read as zeros, without a word.
TEST_F(CheckpointH5py, AMissingShardIsFoundByVerify) {
  fs::rename(checkpoint() / "shard-00001-of-00002.h5", directory_.path() / "gone.h5");
  const std::string text = test::io_error_of([&] { test::verified(checkpoint()); });
  EXPECT_NE(text.find("shard-00001-of-00002.h5 is missing"), std::string::npos) << text;
  EXPECT_NE(read(checkpoint()).exit_code, 0);
}

TEST_F(CheckpointH5py, NoticesAnotherValue) {
  const fs::path file = expected() / "4";
  test::flip_byte(file, 2);
  const test::CommandResult r = read(checkpoint());
  EXPECT_EQ(r.exit_code, 1) << r.output;
  EXPECT_NE(r.output.find("holds other elements"), std::string::npos) << r.output;
}

}  // namespace
}  // namespace emox
