// Every call to the system that a save makes fails in turn, in every way: the save succeeds or says which file, and
// what was there before stays good.
#include <gtest/gtest.h>

#include <cerrno>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <set>

#include "parallel/checkpoint/layout.h"
#include "parallel/checkpoint/saver.h"
#include "runtime/core/idx.h"
#include "tests/faults/faulty_disk.h"
#include "tests/parallel/checkpoint_model.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using test::CheckpointModel;
using test::DiskCall;
using test::DiskCallKind;
using test::DiskFault;
using test::DiskFaultKind;
using test::FaultyDisk;

constexpr int kRanks = 2;
constexpr unsigned kEarlier = 1, kNew = 2, kNext = 3;  // the models

/// What became of the cases, by kind of call.
struct Outcome {
  int cases = 0, refused = 0, succeeded = 0;
};

class FailingDisk : public ::testing::Test {
 protected:
  void SetUp() override {
    EXPECT_EQ(save(0, kEarlier), kGood);
    EXPECT_EQ(save(1, kEarlier), kGood);
    fs::copy(root(), directory_.path() / "good", fs::copy_options::recursive | fs::copy_options::copy_symlinks);
  }
  /// Steps 0 and 1, as in the beginning; a save of step 2 removes step 0.
  void reset() const {
    fs::remove_all(root());
    fs::copy(directory_.path() / "good", root(), fs::copy_options::recursive | fs::copy_options::copy_symlinks);
  }
  /// Of a save of step 2, without a fault.
  std::vector<DiskCall> calls_of_a_save() {
    const FaultyDisk disk(root());
    EXPECT_EQ(save(2, kNew), kGood);
    std::vector<DiskCall> calls = disk.calls();
    // Every rank makes the directory, where it does not see it yet.
    std::erase_if(calls, [](const DiskCall& c) { return c.kind == DiskCallKind::MakeDirectory && c.nth > 0; });
    files_ = names_below(step(2));
    EXPECT_FALSE(fs::exists(step(0)));
    reset();
    return calls;
  }
  fs::path root() const { return directory_.path() / "checkpoints"; }
  fs::path step(int n) const { return root() / step_directory_name(n); }

  /// What each rank says; empty where it succeeded. With `between`, the same object saves the step twice, the earlier
  /// model first, and `between` is called before the second.
  std::vector<std::string> save(int n, unsigned model, const std::function<void()>& between = {}) const {
    std::vector<std::string> texts(kRanks);
    test::run_ranks(kRanks, [&](Communicator& comm) {
      const CheckpointModel saved(model, 1);
      const auto mine = test::divide_among_ranks(saved.pieces(), comm.rank(), comm.size());
      try {
        Context ctx;
        CheckpointSaver saver(comm, root(), mine, {.background = background_, .retention = {.keep_last = 2}});
        if (between) {
          set_values(saved, kEarlier);
          saver.save(n, test::some_meta());
          set_values(saved, model);
          comm.barrier();
          if (comm.rank() == 0) between();
          comm.barrier();
        }
        if (background_) {
          saver.start(ctx, n, test::some_meta());
          saver.wait();
        } else {
          saver.save(n, test::some_meta());
        }
      } catch (const IoError& e) {
        texts[idx(comm.rank())] = e.message();
      }
    });
    return texts;
  }

  /// Those of another model, in the same memory.
  static void set_values(const CheckpointModel& to, unsigned model) {
    const CheckpointModel from(model, 1);
    const auto target = to.pieces(), source = from.pieces();
    for (std::size_t i = 0; i < target.size(); ++i)
      if (source[i].view.bytes() > 0) std::memcpy(target[i].view.raw(), source[i].view.raw(), source[i].view.bytes());
  }

  void expect_holds(int n, unsigned model) const {
    test::run_ranks(kRanks, [&](Communicator& comm) {
      const CheckpointModel want(model, 1), got(model + 1000, 1);
      EXPECT_EQ(load_checkpoint(comm, step(n), got.pieces()).step, n);
      EXPECT_TRUE(test::same_bits(got.pieces(), want.pieces())) << "step " << n;
    });
  }

  /// Every entry below the directory, with its size.
  static std::map<std::string, std::uintmax_t> names_below(const fs::path& directory) {
    std::map<std::string, std::uintmax_t> names;
    for (const auto& e : fs::recursive_directory_iterator(directory))
      names[e.path().lexically_relative(directory).string()] = e.is_regular_file() ? e.file_size() : 0;
    return names;
  }

  /// The newest that can be found, by find_latest and by what the directory lists.
  void expect_newest(int n) const {
    test::run_ranks(kRanks, [&](Communicator& comm) {
      const auto found = find_latest(comm, root(), nullptr);
      ASSERT_TRUE(found.has_value());
      EXPECT_EQ(found->path, step(n));
    });
    EXPECT_EQ(list_checkpoints(root()).front(), step(n));
    // Where the disk does not even allow to put it back it is gone, and never leads to nothing.
    const fs::path latest = root() / kLatestName;
    if (fs::is_symlink(latest)) {
      EXPECT_EQ(fs::read_symlink(latest).filename(), step(n).filename());
    }
  }

  void expect_refusal(const std::vector<std::string>& texts, const DiskFault& fault) const {
    for (const std::string& text : texts) {
      EXPECT_NE(text.find(root().string()), std::string::npos) << text;
      EXPECT_NE(text.find(std::strerror(fault.error)), std::string::npos) << text;
      // Once the disk fails for good, another rank's file may be the one that is named.
      if (fault.kind != DiskFaultKind::Once) continue;
      std::string file = (root() / fault.at.path).filename().string();
      if (file.ends_with(".tmp")) file.resize(file.size() - 4);
      EXPECT_NE(text.find(file), std::string::npos) << text;
    }
  }

  /// A save with the fault; true when it succeeded. Then the state of the directory, and a save without the fault.
  bool survives(const DiskFault& fault) const {
    std::vector<std::string> texts;
    {
      const FaultyDisk disk(root(), fault);
      texts = save(2, kNew);
      EXPECT_TRUE(disk.struck());
    }
    const FaultyDisk no_syncs(root());
    const bool good = texts == kGood;
    if (good) {
      expect_newest(2);
      expect_holds(2, kNew);
    } else {
      expect_refusal(texts, fault);
      expect_newest(1);
      expect_holds(0, kEarlier);
    }
    expect_holds(1, kEarlier);
    EXPECT_EQ(save(2, kNext), kGood);
    EXPECT_EQ(names_below(step(2)), files_);
    expect_newest(2);
    expect_holds(2, kNext);
    reset();
    return good;
  }

  /// Every call of a save in turn.
  void every_call(const char* title, DiskFaultKind kind, int error) {
    std::map<std::string, Outcome> outcomes;
    const bool shortens = kind == DiskFaultKind::Short || kind == DiskFaultKind::ShortThenFull;
    for (const DiskCall& call : calls_of_a_save()) {
      if (shortens && call.kind != DiskCallKind::Write) continue;
      SCOPED_TRACE(fmt::format("{} {} #{} of {}", title, call.function, call.nth, call.path));
      // Once the checkpoint is in place: which older one may go, another row of the table.
      const std::string top = call.path.substr(0, call.path.find('/'));
      const bool retention =
          (step_of_directory(top) && call.path != top) || top.starts_with(step(0).filename().string());
      Outcome& o = outcomes[std::string(name_of(call.kind)) + (retention ? " (retention)" : "")];
      ++o.cases;
      ++(survives({.at = call, .kind = kind, .error = error}) ? o.succeeded : o.refused);
      if (HasFailure()) return;
    }
    for (const auto& [call, o] : outcomes)
      std::printf("  %-24s %-18s %3d cases: %3d refused, %3d succeeded\n", title, call.c_str(), o.cases, o.refused,
                  o.succeeded);
    for (const auto& [call, o] : outcomes) {
      // A short write is gone on with, an older checkpoint that cannot be removed stays, and HDF5 tries twice to create
      // a file; nothing else may be passed over.
      if (call == "open") {
        EXPECT_GT(o.refused, o.cases / 2);
      } else {
        const bool passes = kind == DiskFaultKind::Short || call.ends_with("(retention)");
        EXPECT_EQ(passes ? o.succeeded : o.refused, o.cases) << call;
      }
    }
    EXPECT_GT(outcomes["write"].cases, 20);
  }

  const std::vector<std::string> kGood = std::vector<std::string>(kRanks);
  test::TemporaryDirectory directory_;
  bool background_ = false;                      ///< how it is saved
  std::map<std::string, std::uintmax_t> files_;  ///< of a checkpoint of step 2
};

// If the libraries' calls went past the faults, the other tests would show nothing.
TEST_F(FailingDisk, SeesTheCallsOfTheLibraries) {
  const std::vector<DiskCall> calls = calls_of_a_save();
  std::map<std::string, std::uintmax_t> written;  // by file
  std::set<std::string> functions;
  for (const DiskCall& c : calls) {
    functions.insert(c.function);
    if (c.kind == DiskCallKind::Write) written[fs::path(c.path).filename().string()] += c.bytes;
  }
  for (int r = 0; r < kRanks; ++r) {
    const std::string name = shard_file_name(r, kRanks);
    // The library leaves gaps of less than a sieve buffer between its own blocks.
    ASSERT_TRUE(files_.contains(name));
    EXPECT_GE(written[name], files_.at(name) * 9 / 10) << name;
  }
  EXPECT_TRUE(functions.contains("pwrite") || functions.contains("pwrite64"));  // libhdf5
  EXPECT_TRUE(functions.contains("mkdir") && functions.contains("openat"));     // libstdc++
  EXPECT_TRUE(functions.contains("rename") && functions.contains("fsync"));     // emox
}

/// A crash of the machine loses what was not synced: every file, and the list of names of every directory, is synced
/// after its last change, and before the checkpoint gets its name.
TEST_F(FailingDisk, EverythingIsSyncedBeforeItIsNamed) {
  const std::vector<DiskCall> calls = calls_of_a_save();
  const std::string temporary = step(2).filename().string() + ".tmp";
  std::map<std::string, bool> unsynced;
  bool named = false;
  for (const DiskCall& c : calls) {
    if (c.kind == DiskCallKind::Write || c.kind == DiskCallKind::Truncate) unsynced[c.path] = true;
    if (c.kind == DiskCallKind::Sync) unsynced[c.path] = false;
    if (c.kind != DiskCallKind::Rename || c.from == step(0).filename()) continue;
    if (c.path == step(2).filename()) {
      named = true;
      for (const auto& [path, yes] : unsynced) EXPECT_FALSE(yes && path.starts_with(temporary)) << path;
      EXPECT_TRUE(unsynced.contains(temporary));
    }
    EXPECT_FALSE(unsynced[c.from]) << c.from;
    unsynced.erase(c.from);
    unsynced[fs::path(c.path).parent_path().string()] = true;
  }
  EXPECT_TRUE(named);
  EXPECT_FALSE(unsynced[""]);
}

// The names in a directory are synced by one rank for all of its node: of a thousand ranks, a thousand would wait
// there.
TEST_F(FailingDisk, DirectoriesAreNotSyncedByEveryRank) {
  const auto directory_syncs = [&](int ranks, std::int64_t n) {
    const FaultyDisk disk(root());
    test::run_ranks(ranks, [&](Communicator& comm) {
      const CheckpointModel saved(kNew, 1);
      const auto mine = test::divide_among_ranks(saved.pieces(), comm.rank(), comm.size());
      CheckpointSaver(comm, root(), mine, {}).save(n, {});
    });
    const std::vector<DiskCall> calls = disk.calls();
    return std::count_if(calls.begin(), calls.end(), [](const DiskCall& c) {
      return c.kind == DiskCallKind::Sync && c.path.find('/') == std::string::npos;
    });
  };
  const auto two = directory_syncs(2, 3);
  EXPECT_GE(two, 3);  // the shards' names, the manifest's, the checkpoint's
  EXPECT_EQ(directory_syncs(6, 4), two);
}

TEST_F(FailingDisk, NoSpaceOnce) { every_call("ENOSPC once", DiskFaultKind::Once, ENOSPC); }
TEST_F(FailingDisk, AnErrorOnce) { every_call("EIO once", DiskFaultKind::Once, EIO); }
TEST_F(FailingDisk, NoSpaceFromThenOn) { every_call("ENOSPC from then on", DiskFaultKind::FromThenOn, ENOSPC); }
TEST_F(FailingDisk, NoSpaceInTheBackground) {
  background_ = true;
  every_call("ENOSPC, in background", DiskFaultKind::Once, ENOSPC);
}
TEST_F(FailingDisk, AShortWrite) { every_call("a short write", DiskFaultKind::Short, 0); }
TEST_F(FailingDisk, AShortWriteThenNoSpace) { every_call("short, then ENOSPC", DiskFaultKind::ShortThenFull, ENOSPC); }

// The newest checkpoint is found and loaded, or the disk's error is told; short reads are nobody's concern.
TEST_F(FailingDisk, ReadErrors) {
  EXPECT_EQ(save(2, kNew), kGood);
  // On one rank: two would share what HDF5 has read of a file, now in this order and now in that.
  const auto comm = make_self_communicator();
  const auto load_newest = [&]() -> std::string {
    try {
      const auto found = find_latest(*comm, root(), nullptr);
      if (!found) return "nothing";
      const CheckpointModel got(1000, 1), want(found->manifest.step == 2 ? kNew : kEarlier, 1);
      load_checkpoint(*comm, found->path, got.pieces());
      EXPECT_TRUE(test::same_bits(got.pieces(), want.pieces()));
      return found->path.filename().string();
    } catch (const IoError& e) {
      return e.message();
    }
  };
  std::vector<DiskCall> calls;
  {
    const FaultyDisk disk(root());
    EXPECT_EQ(load_newest(), step(2).filename());
    calls = disk.calls();
  }
  std::map<std::string, int> outcomes;
  for (const DiskFaultKind kind : {DiskFaultKind::Once, DiskFaultKind::Short})
    for (const DiskCall& call : calls) {
      if (kind == DiskFaultKind::Short && call.kind != DiskCallKind::Read) continue;
      SCOPED_TRACE(fmt::format("{} #{} of {}", call.function, call.nth, call.path));
      const FaultyDisk disk(root(), DiskFault{.at = call, .kind = kind, .error = EIO});
      const std::string text = load_newest();
      EXPECT_TRUE(disk.struck());
      const bool found = text.starts_with("step-");
      ++outcomes[fmt::format("{} {}: {}", kind == DiskFaultKind::Once ? "EIO" : "short", name_of(call.kind),
                             found ? text : "refused")];
      if (kind == DiskFaultKind::Short) {
        EXPECT_EQ(text, step(2).filename());
      }
      if (found) continue;
      EXPECT_NE(text.find(root().string()), std::string::npos) << text;
      EXPECT_NE(text.find(std::strerror(EIO)), std::string::npos) << text;
    }
  for (const auto& [what, n] : outcomes) std::printf("  %-32s %3d cases\n", what.c_str(), n);
  // What cannot be read may be good: it is never passed over.
  EXPECT_FALSE(outcomes.contains("EIO read: step-00000001"));
  EXPECT_FALSE(outcomes.contains("EIO open: step-00000001"));
  EXPECT_GT(outcomes["EIO read: refused"], 4);
}

// A save of a step that is there already: either the old one or the new one is in place, whole. One that the same
// object wrote is replaced, any other one moved aside.
class FailingReplacement : public FailingDisk, public ::testing::WithParamInterface<bool> {
 protected:
  /// A save of step 1 with that fault, and the calls that it makes.
  std::vector<std::string> replace(unsigned model, const std::optional<DiskFault>& fault,
                                   std::vector<DiskCall>* calls = nullptr) const {
    std::optional<FaultyDisk> disk;
    const auto watch = [&] { disk.emplace(root(), fault); };
    const bool own = GetParam();
    if (!own) watch();
    std::vector<std::string> texts = save(1, model, own ? std::function<void()>(watch) : nullptr);
    EXPECT_EQ(disk->struck(), fault.has_value());
    if (calls != nullptr) *calls = disk->calls();
    return texts;
  }
  std::size_t aside() const {
    std::size_t found = 0;
    for (const auto& entry : fs::directory_iterator(root()))
      found += entry.path().filename().string().find(".aside-") != std::string::npos ? 1 : 0;
    return found;
  }
};

TEST_P(FailingReplacement, EitherIsInPlace) {
  std::vector<DiskCall> calls;
  EXPECT_EQ(replace(kEarlier, std::nullopt, &calls), kGood);
  EXPECT_EQ(aside(), 1U);  // the one that was there; what the object wrote itself is gone
  reset();
  int refused = 0, succeeded = 0;
  for (const int error : {EIO, ENOSPC, EINVAL}) {  // EINVAL: a file system that cannot swap two directories
    for (const DiskCall& call : calls) {
      if (call.kind != DiskCallKind::Rename && call.kind != DiskCallKind::Sync && !call.path.empty()) continue;
      DiskCall at = call;
      // The name that is moved aside to says when.
      if (at.path.find(".aside-") != std::string::npos) continue;
      SCOPED_TRACE(fmt::format("{} {} #{} of {}", std::strerror(error), call.function, call.nth, call.path));
      const std::vector<std::string> texts = replace(kNew, DiskFault{.at = at, .error = error});
      expect_newest(1);
      expect_holds(1, texts == kGood ? kNew : kEarlier);
      EXPECT_EQ(aside(), GetParam() || texts == kGood ? 1U : 0U);
      (texts == kGood ? succeeded : refused) += 1;
      if (call.function == "renameat2") {
        EXPECT_EQ(texts, kGood);
      }
      reset();
    }
  }
  std::printf("  replacing a checkpoint: %d refused, %d succeeded\n", refused, succeeded);
  EXPECT_GE(refused, 10);
}

INSTANTIATE_TEST_SUITE_P(OfWhom, FailingReplacement, ::testing::Bool(),
                         [](const auto& own) { return own.param ? "OfTheSameObject" : "OfAnother"; });

}  // namespace
}  // namespace emox

#ifdef __SANITIZE_ADDRESS__
/// HDF5 1.10 keeps some memory for good when it could not create or open a file.
extern "C" const char* __lsan_default_suppressions();
extern "C" const char* __lsan_default_suppressions() { return "leak:libhdf5"; }
#endif
