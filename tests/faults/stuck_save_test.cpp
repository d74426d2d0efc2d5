// A rank that fails while a save of it hangs on the disk says why at once, and not when the disk lets it go.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <source_location>
#include <stdexcept>
#include <string>
#include <thread>

#include "launch/run/failure.h"
#include "launch/run/session.h"
#include "launch/run/trainer.h"
#include "parallel/comm/communicator.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/files/files.h"
#include "tests/faults/faulty_disk.h"
#include "tests/support/ranks.h"
#include "tests/support/support.h"
#include "tests/support/training.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

/// What goes to stderr, readable while it is written.
class StandardError {
 public:
  explicit StandardError(fs::path file) : file_(std::move(file)), before_(dup(STDERR_FILENO)) {
    std::fflush(stderr);
    const int fd = open(file_.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    dup2(fd, STDERR_FILENO);
    close(fd);
  }
  ~StandardError() {
    std::fflush(stderr);
    dup2(before_, STDERR_FILENO);
    close(before_);
  }
  StandardError(const StandardError&) = delete;
  StandardError& operator=(const StandardError&) = delete;
  std::string text() const { return try_read_text(file_).text; }
  /// Whether it holds this within the time.
  bool shows(const std::string& part, std::chrono::seconds at_most) const {
    const auto end = Clock::now() + at_most;
    while (text().find(part) == std::string::npos) {
      if (Clock::now() > end) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return true;
  }

 private:
  const fs::path file_;
  const int before_;
};

TEST(StuckSave, TheMessageComesBeforeTheWait) {
  const test::TemporaryDirectory directory;
  Recipe recipe = test::tiny_recipe(test::make_text_sources(directory.path()));
  recipe.run.dir = (directory.path() / "run").string();
  recipe.train.steps = 4;
  recipe.train.learning_rate = 1e30;  // the loss of step 2 is not a number
  recipe.train.warmup_steps = 0;
  recipe.eval.final = false;
  recipe.checkpoint.every_steps = 1;
  recipe.checkpoint.async = true;
  const fs::path checkpoints = fs::path(recipe.run.dir) / "checkpoints";
  fs::create_directories(checkpoints);
  // Rank 1's shard of step 1.
  test::DiskCall shard_sync;
  shard_sync.kind = test::DiskCallKind::Sync;
  shard_sync.path = "step-00000001.tmp/shard-00001-of-00002.h5";
  test::FaultyDisk disk(checkpoints, test::DiskFault{.at = shard_sync, .kind = test::DiskFaultKind::Stall});
  const StandardError printed(directory.path() / "stderr");
  std::string thrown[2];
  std::atomic<int> ended = 0;
  std::thread job([&] {
    ThreadWorld world(2);
    test::run_ranks(world, [&](Communicator& comm) {
      const auto rank = idx(comm.rank());
      try {
        Session session(comm.split(0, comm.rank()), 1);
        train(session, recipe, {"test"});
      } catch (const Error& e) {
        thrown[rank] = e.message();
      }
      if (rank == 1) ++ended;
    });
  });
  const bool said = printed.shows("[rank 1]", std::chrono::seconds(60));
  EXPECT_TRUE(said) << printed.text();
  EXPECT_TRUE(disk.struck());
  EXPECT_EQ(ended, 0) << "rank 1 did not wait: this shows nothing";
  disk.release();
  job.join();
  EXPECT_EQ(ended, 1);
  const std::string text = printed.text();
  for (const std::string& message : thrown) {
    EXPECT_NE(message.find("step 2"), std::string::npos) << message;
    EXPECT_NE(text.find(message), std::string::npos) << text;
  }
}

TEST(StuckSave, AFailureIsSaidOnce) {
  const test::TemporaryDirectory directory;
  const StandardError printed(directory.path() / "stderr");
  const auto twice = [](auto&& error) {
    try {
      saying_why(0, [&] { saying_why(0, [&] { throw error; }); });
    } catch (const std::exception& e) {
      return say_failure(e);
    }
    return 0;
  };
  const auto here = std::source_location::current();
  EXPECT_EQ(twice(UsageError("no such key", here)), 2);
  EXPECT_EQ(twice(TryAgainError("in use", here)), 75);
  EXPECT_EQ(twice(IoError("the disk is full", here)), 1);
  EXPECT_EQ(twice(std::runtime_error("something else")), 1);
  const std::string text = printed.text();
  EXPECT_TRUE(text.starts_with("emox: no such key\nemox: in use\nemox: the disk is full [rank 0] (")) << text;
  EXPECT_TRUE(text.ends_with("\nemox: something else [rank 0]\n")) << text;
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 4) << text;
}

}  // namespace
}  // namespace emox
