// One flipped byte in every kind of place of a checkpoint, and files that are missing, cut, swapped or from elsewhere:
// refused with the file's name by whoever looks, and no other bytes reach a tensor.
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <set>

#include "parallel/checkpoint/layout.h"
#include "runtime/files/files.h"
#include "runtime/telemetry/log.h"
#include "tests/parallel/checkpoint_model.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using test::io_error_of;

/// Enough parameters in one group for HDF5 to keep their names in a heap, and little of everything.
class TinyModel {
 public:
  explicit TinyModel(unsigned seed) {
    for (int i = 0; i < 20; ++i) memory_.push_back(test::random_tensor({3}, seed * 100 + static_cast<unsigned>(i)));
  }
  std::vector<CheckpointPiece> pieces() const {
    std::vector<CheckpointPiece> list;
    for (std::size_t i = 0; i < memory_.size(); ++i)
      test::add_whole(list, fmt::format("many.p{}.weight", i), memory_[i]);
    return list;
  }

 private:
  std::vector<Tensor> memory_;
};

std::string content_of(const fs::path& file) { return try_read_text(file).text; }

void write_content(const fs::path& file, const std::string& content) {
  std::ofstream(file, std::ios::binary) << content;
}

class DamageTable : public ::testing::Test {
 protected:
  void SetUp() override { make(root()); }

  static void make(const fs::path& root) {
    save(root, 10, 1);
    save(root, 20, 2);
  }
  static void save(const fs::path& root, std::int64_t step, unsigned seed) {
    test::run_ranks(2, [&](Communicator& comm) {
      const TinyModel model(seed);
      save_checkpoint(comm, root, step, test::divide_among_ranks(model.pieces(), comm.rank(), 2), test::some_meta());
    });
  }

  fs::path root() const { return directory_.path() / "checkpoints"; }
  fs::path newest() const { return root() / "step-00000020"; }
  fs::path shard(int rank) const { return newest() / shard_file_name(rank, 2); }
  fs::path manifest() const { return newest() / "manifest.json"; }

  /// Both ranks refuse `damaged` with `named` in the message, no tensor is touched, and the earlier checkpoint is found
  /// while the log says what was passed over.
  void expect_refused(const fs::path& damaged, const std::string& named) const {
    const fs::path log_file = directory_.path() / "log.txt";
    fs::remove(log_file);
    test::run_ranks(2, [&](Communicator& comm) {
      const TinyModel model(77);
      const std::string text = io_error_of([&] { load_checkpoint(comm, damaged, model.pieces()); });
      EXPECT_NE(text.find(named), std::string::npos) << text;
      Log log(1, comm.rank() == 0 ? log_file.string() : "");  // rank 1 keeps off the console
      const auto found = find_latest(comm, root(), &log);
      ASSERT_TRUE(found.has_value());
      EXPECT_EQ(found->path, root() / "step-00000010");
    });
    const std::string log = content_of(log_file);
    EXPECT_NE(log.find("skipping the checkpoint " + damaged.string()), std::string::npos) << log;
    EXPECT_NE(log.find(named), std::string::npos) << log;
  }

  /// Another byte at this place of the file is noticed.
  void expect_byte_matters(const std::string& what, const fs::path& file, std::size_t at) const {
    SCOPED_TRACE(fmt::format("{}: byte {} of {}", what, at, file.filename().string()));
    const std::string good = content_of(file);
    ASSERT_LT(at, good.size());
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 1);
    write_content(file, bad);
    expect_refused(newest(), file.string());
    write_content(file, good);
  }

  /// A place in the file with these bytes.
  static std::size_t place_of(const fs::path& file, const std::string& bytes) {
    const std::size_t at = content_of(file).find(bytes);
    EXPECT_NE(at, std::string::npos) << "no " << bytes.substr(0, 20) << " in " << file;
    return at;
  }

  test::TemporaryDirectory directory_;
};

std::string bytes_of(const TensorView& view) { return {static_cast<const char*>(view.raw()), view.bytes()}; }

TEST_F(DamageTable, AByteOfEveryKind) {
  const fs::path file = shard(0);
  // divide_among_ranks gives the first parameter to rank 0.
  expect_byte_matters("tensor data", file, place_of(file, bytes_of(TinyModel(2).pieces()[0].view)) + 5);
  expect_byte_matters("signature", file, 1);
  expect_byte_matters("superblock", file, 20);
  for (const char* block : {"OHDR", "FRHP", "FHDB", "BTHD", "BTLF"}) {
    expect_byte_matters(block, file, place_of(file, block) + 2);
    expect_byte_matters(std::string("in ") + block, file, place_of(file, block) + 9);
  }
  expect_byte_matters("a link's name", file, place_of(file, "many") + 1);
  expect_byte_matters("unused space", file, place_of(file, std::string(24, '\0')) + 12);
  expect_byte_matters("the last byte", file, fs::file_size(file) - 1);
  for (const char* text :
       {"{", "}", "\"step\"", ": ", "20,", "\"xxh3_128\": \"", "\n  {", "shard-00001", "f32", "t\u00ebst"}) {
    const std::size_t at = place_of(manifest(), text);
    expect_byte_matters(fmt::format("manifest, {}", text), manifest(), at);
    expect_byte_matters(fmt::format("manifest, behind {}", text), manifest(), at + std::strlen(text));
  }
  expect_byte_matters("the manifest's own checksum", manifest(), place_of(manifest(), "\"checksum\": \"") + 20);
  expect_byte_matters("the manifest's last byte", manifest(), fs::file_size(manifest()) - 1);
  // Whatever else a checkpoint consists of.
  for (const auto& entry : fs::directory_iterator(newest()))
    for (const std::size_t part : {0, 1, 2, 3})
      expect_byte_matters("somewhere", entry.path(), (entry.file_size() - 1) * part / 3);
}

// In a checkpoint of kilobytes, of one rank; where a file has more, as many as that, evenly spread.
TEST_F(DamageTable, EveryByte) {
#ifdef __SANITIZE_ADDRESS__
  constexpr std::size_t kMost = 300;
#else
  constexpr std::size_t kMost = 3000;
#endif
  const auto comm = make_self_communicator();
  const TinyModel saved(5);
  const fs::path path = save_checkpoint(*comm, directory_.path() / "one", 3, saved.pieces(), {});
  const TinyModel model(77);
  std::size_t places = 0, files = 0;
  for (const auto& entry : fs::directory_iterator(path)) {
    ++files;
    const std::size_t size = entry.file_size(), stride = (size + kMost - 1) / kMost;
    for (std::size_t at = 0; at < size; at += stride, ++places) {
      test::flip_byte(entry.path(), at);
      const std::string text = io_error_of([&] { load_checkpoint(*comm, path, model.pieces()); });
      ASSERT_NE(text.find(entry.path().string()), std::string::npos) << text;
      ASSERT_FALSE(find_latest(*comm, path.parent_path(), nullptr).has_value());
      test::flip_byte(entry.path(), at);
    }
  }
  std::printf("  %zu bytes of %zu files, one at a time\n", places, files);
  EXPECT_GT(places, files * std::min<std::size_t>(kMost / 2, 1000));
  load_checkpoint(*comm, path, model.pieces());
  EXPECT_TRUE(test::same_bits(model.pieces(), saved.pieces()));
}

TEST_F(DamageTable, FilesThatAreNotTheCheckpoints) {
  using Damage = std::function<void(const fs::path& file)>;
  const std::map<std::string, Damage> damages = {
      {"missing", [](const fs::path& f) { fs::remove(f); }},
      {"empty", [](const fs::path& f) { fs::resize_file(f, 0); }},
      {"one byte short", [](const fs::path& f) { fs::resize_file(f, fs::file_size(f) - 1); }},
      {"half", [](const fs::path& f) { fs::resize_file(f, fs::file_size(f) / 2); }},
      {"one byte longer", [](const fs::path& f) { std::ofstream(f, std::ios::app) << '\0'; }},
      {"twice", [](const fs::path& f) { write_content(f, content_of(f) + content_of(f)); }},
      {"a directory", [](const fs::path& f) { fs::remove(f), fs::create_directory(f); }},
      {"a link to itself", [](const fs::path& f) { fs::remove(f), fs::create_symlink(f, f); }},
  };
  const fs::path good = directory_.path() / "good";
  fs::copy(newest(), good, fs::copy_options::recursive);
  int cases = 0;
  for (const auto& entry : fs::directory_iterator(good))
    for (const auto& [what, damage] : damages) {
      const fs::path file = newest() / entry.path().filename();
      SCOPED_TRACE(what + ": " + file.filename().string());
      damage(file);
      expect_refused(newest(), file.string());
      fs::remove_all(newest());
      fs::copy(good, newest(), fs::copy_options::recursive);
      ++cases;
    }
  EXPECT_GE(cases, 24);
  test::run_ranks(2, [&](Communicator& comm) { EXPECT_EQ(find_latest(comm, root(), nullptr)->path, newest()); });
}

TEST_F(DamageTable, TwoShardsExchanged) {
  fs::rename(shard(0), newest() / "x");
  fs::rename(shard(1), shard(0));
  fs::rename(newest() / "x", shard(1));
  expect_refused(newest(), newest().string() + "/shard-0000");
}

// Every file that belongs to an earlier step of the same run has the same name and, most often, the same size.
TEST_F(DamageTable, AFileOfAnEarlierStep) {
  for (const auto& entry : fs::directory_iterator(root() / "step-00000010")) {
    const fs::path file = newest() / entry.path().filename();
    SCOPED_TRACE(file.string());
    const std::string good = content_of(file), older = content_of(entry.path());
    if (older == good) continue;  // says nothing of the step
    write_content(file, older);
    // A manifest of another step is whole by itself: the directory is named.
    expect_refused(newest(), file.filename() == "manifest.json" ? newest().string() : file.string());
    write_content(file, good);
  }
}

TEST_F(DamageTable, ACheckpointUnderAnotherStepsName) {
  const fs::path renamed = root() / "step-00000030";
  fs::rename(newest(), renamed);
  expect_refused(renamed, renamed.string());
  // What is not named after a step may be called anything.
  fs::rename(renamed, directory_.path() / "copy");
  test::run_ranks(2, [&](Communicator& comm) {
    const TinyModel model(77), want(2);
    EXPECT_EQ(load_checkpoint(comm, directory_.path() / "copy", model.pieces()).step, 20);
    EXPECT_TRUE(test::same_bits(model.pieces(), want.pieces()));
  });
}

}  // namespace
}  // namespace emox
