// Who has a run directory: every rule of launch/run/lease.h.
#include "launch/run/lease.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <fstream>
#include <memory>
#include <vector>

#include "runtime/core/error.h"
#include "tests/launch/lease_directory.h"
#include "tests/support/messages.h"

namespace emox {
namespace {

using test::expect_parts;

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using Lease = test::LeaseDirectory;
using test::elsewhere, test::me, test::start_child;

constexpr LeaseTiming kFast{20ms, 300ms};

/// A child that has the lease and keeps it; returns when it has it.
pid_t start_holder(const fs::path& run) {
  int ready[2];
  EXPECT_EQ(pipe(ready), 0);
  const pid_t pid = start_child([&] {
    const RunLease lease(run, me());
    if (::write(ready[1], "x", 1) != 1) return 1;
    for (;;) pause();
  });
  close(ready[1]);
  char byte = 0;
  EXPECT_EQ(read(ready[0], &byte, 1), 1);
  close(ready[0]);
  return pid;
}

TEST_F(Lease, SaysWhoHasItAndGoesAwayWithItsOwner) {
  {
    const LeaseHolder self = me();
    const RunLease lease(run_, self);
    EXPECT_EQ(files(), std::vector<std::string>{"lease.json"});
    const LeaseHolder h = holder();
    EXPECT_EQ(h.pid, getpid());
    EXPECT_EQ(h.token, self.token);
    EXPECT_EQ(h.command, "emox train mine.ini");
    EXPECT_TRUE(can_be_looked_for(h, me()));
    EXPECT_TRUE(process_exists(h.pid, h.start_time));
    EXPECT_EQ(LeaseHolder::from_text(h.to_text())->to_text(), h.to_text());
  }
  EXPECT_TRUE(files().empty());
}

TEST_F(Lease, TheSameProcessIsRefusedUntilItGaveItBack) {
  auto first = std::make_unique<RunLease>(run_, me());
  expect_parts(refusal(), {run_.string(), "process " + std::to_string(getpid()), "emox train mine.ini", "since 20",
                           "last renewed 20", "Wait until it ends", "kill -USR1", "--run.dir=DIR"});
  EXPECT_EQ(files(), std::vector<std::string>{"lease.json"});
  first.reset();
  EXPECT_EQ(refusal(), "");
}

TEST_F(Lease, AProcessOfThisHostHasItAsLongAsItExists) {
  const pid_t child = start_holder(run_);
  kill(child, SIGSTOP);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, WUNTRACED), child);
  grow_old(24h);
  expect_parts(refusal(), {"process " + std::to_string(child)});
  // Killed and not yet waited for by its parent: it is gone all the same, and its lease is as young as can be.
  kill(child, SIGKILL);
  siginfo_t info;
  ASSERT_EQ(waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT), 0);
  ASSERT_EQ(kill(child, 0), 0);
  grow_old(0s);
  EXPECT_EQ(refusal(), "");
  waitpid(child, nullptr, 0);
}

TEST_F(Lease, APidThatAnotherProcessHasNowIsNotTheHolder) {
  LeaseHolder h = me();
  h.start_time -= 1;
  write(h.to_text());
  EXPECT_EQ(refusal(), "");
}

TEST_F(Lease, TheAgeCountsWhereTheProcessCannotBeLookedFor) {
  std::vector<LeaseHolder> others(3, me());  // pid and start time are those of a process that is here
  others[0].host = "node7";
  others[1].boot = "another-boot";
  others[2].pid_namespace = "pid:[1]";
  for (const LeaseHolder& other : others) {
    write(other.to_text(), 50s);
    expect_parts(refusal(), {"in use", other.host, "the directory is free 60 s after"});
    write(other.to_text(), 70s);
    EXPECT_EQ(refusal(), "");
  }
  write(elsewhere().to_text());
  expect_parts(refusal(), {"process 4711 on node7 (Slurm job 123), `emox train theirs.ini`"});
}

TEST_F(Lease, WhatTheTextSaysOfTimeDoesNotMatter) {
  LeaseHolder h = elsewhere();
  h.since = h.renewed = "1999-01-01T00:00:00Z";
  write(h.to_text(), 10s);
  expect_parts(refusal(), {"last renewed 1999"});
  h.renewed = "2999-01-01T00:00:00Z";
  write(h.to_text(), 70s);
  EXPECT_EQ(refusal(), "");
}

TEST_F(Lease, OneThatCannotBeReadIsHeldWhileItIsYoung) {
  LeaseHolder bad = elsewhere();
  bad.token = "../../" + bad.token.substr(6);
  for (const std::string& text : {std::string(), std::string("{\"pid\": 12"), std::string("[1]"), bad.to_text()}) {
    write(text);
    expect_parts(refusal(), {"in use", "cannot be read", "Try again"});
    write(text, 70s);
    EXPECT_EQ(refusal(), "");
    EXPECT_TRUE(files().empty());
  }
}

TEST_F(Lease, ItIsRenewed) {
  const RunLease lease(run_, me(), kFast);
  const auto changed = [&] { return LeaseFile::read(file())->changed; };
  const FileTime before = changed();
  const auto end = std::chrono::steady_clock::now() + 2s;
  while (changed() < before + 100ms && std::chrono::steady_clock::now() < end) std::this_thread::sleep_for(5ms);
  EXPECT_GE(changed(), before + 100ms);
  // A job on another host sees no stale lease as long as that goes on.
  EXPECT_THROW(RunLease(run_, elsewhere(), kFast), TryAgainError);
}

TEST_F(Lease, ALostOneIsNoticedAndLeftAlone) {
  const LeaseHolder thief = elsewhere();
  for (const bool removed : {false, true}) {
    SCOPED_TRACE(removed);
    fs::remove(file());
    RunLease lease(run_, me(), kFast);
    EXPECT_NO_THROW(lease.check());
    EXPECT_NO_THROW(lease.confirm());
    if (removed) {
      fs::remove(file());
    } else {  // as a job does that takes a stale lease
      std::ofstream(run_ / "other") << thief.to_text();
      fs::rename(run_ / "other", file());
    }
    std::string message;
    const auto end = std::chrono::steady_clock::now() + 2s;
    while (message.empty() && std::chrono::steady_clock::now() < end) {
      try {
        lease.check();
        std::this_thread::sleep_for(5ms);
      } catch (const Error& e) {
        message = e.message();
      }
    }
    expect_parts(message, {"lost the run directory " + run_.string(), removed ? "was removed" : "4711 on node7"});
    EXPECT_THROW(lease.confirm(), Error);
    if (!removed) {
      EXPECT_EQ(holder().token, thief.token);
    }
  }
  EXPECT_TRUE(files().empty());
}

TEST_F(Lease, ItsOwnerLeavesALaterOneAlone) {
  const LeaseHolder thief = elsewhere();
  auto lease = std::make_unique<RunLease>(run_, me());
  write(thief.to_text());
  lease.reset();
  EXPECT_EQ(holder().token, thief.token);
  EXPECT_EQ(files(), std::vector<std::string>{"lease.json"});
}

// Nothing runs in between: what the thread would have found out later, confirm() sees now.
TEST_F(Lease, ConfirmLooksAtOnce) {
  RunLease lease(run_, me(), {1h, 2h});
  fs::remove(file());
  EXPECT_NO_THROW(lease.check());
  EXPECT_THROW(lease.confirm(), Error);
  EXPECT_THROW(lease.check(), Error);
}

// A suspended job wakes up, and another one has the directory: the first check afterwards must see that.
TEST_F(Lease, ALongSleepIsNoticedBeforeAnythingElse) {
  constexpr auto kEvery = 50ms;
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = start_child([&] {
    RunLease lease(run_, me(), {kEvery, 1h});
    if (::write(ready[1], "x", 1) != 1) return 1;
    for (auto last = std::chrono::steady_clock::now();;) {
      const auto now = std::chrono::steady_clock::now();
      try {
        lease.check();
      } catch (const Error&) {
        return 7;
      }
      if (now - last > 3 * kEvery) return 3;  // slept, and noticed nothing
      last = now;
    }
  });
  char byte = 0;
  EXPECT_EQ(read(ready[0], &byte, 1), 1);
  close(ready[0]), close(ready[1]);
  kill(child, SIGSTOP);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, WUNTRACED), child);
  std::ofstream(run_ / "other") << elsewhere().to_text();
  fs::rename(run_ / "other", file());
  std::this_thread::sleep_for(5 * kEvery);
  kill(child, SIGCONT);
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 7);
}

TEST_F(Lease, ARenewalNeverOverwritesALaterLease) {
  for (int round = 0; round < 200; ++round) {
    fs::remove(file());
    const RunLease lease(run_, me(), {1ms, 1h});
    std::this_thread::sleep_for(std::chrono::microseconds(round * 10));
    const LeaseHolder next = elsewhere();
    std::ofstream(run_ / "other") << next.to_text();
    fs::rename(run_ / "other", file());
    std::this_thread::sleep_for(2ms);
    ASSERT_EQ(holder().token, next.token);
  }
}

TEST_F(Lease, ItsThreadTakesNoSignals) {
  const auto blocked = [](const std::string& thread) {
    std::ifstream in("/proc/self/task/" + thread + "/status");
    for (std::string line; std::getline(in, line);)
      if (line.starts_with("SigBlk:")) return std::stoull(line.substr(7), nullptr, 16);
    return 0ULL;
  };
  const auto threads = [] {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator("/proc/self/task")) names.push_back(entry.path().filename());
    return names;
  };
  const auto before = threads();
  const RunLease lease(run_, me());
  std::size_t born = 0;
  for (const std::string& thread : threads()) {
    if (std::count(before.begin(), before.end(), thread) > 0) continue;
    ++born;
    for (const int signal : {SIGUSR1, SIGTERM, SIGINT, SIGALRM})
      EXPECT_NE(blocked(thread) & (1ULL << (signal - 1)), 0U) << signal;
  }
  EXPECT_EQ(born, 1U);
  EXPECT_EQ(blocked(std::to_string(getpid())) & (1ULL << (SIGUSR1 - 1)), 0U) << "not of the thread that made it";
}

TEST_F(Lease, ADirectoryThatCannotBeMadeOrWrittenTo) {
  const auto message = [](const fs::path& run) {
    try {
      const RunLease lease(run, me());
    } catch (const UsageError& e) {
      return e.message();
    }
    return std::string();
  };
  const std::ofstream plain(directory_.path() / "plain");
  expect_parts(message(directory_.path() / "plain" / "run"),
               {"cannot make the run directory", "plain", "--run.dir=DIR"});
  expect_parts(message("/proc/self"), {"cannot write in the run directory /proc/self", "--run.dir=DIR"});
}

// The time of a file that a clock wrote that was ahead, or that somebody set.
TEST_F(Lease, ADateInTheFutureHoldsNoLongerThanAnyOther) {
  write(elsewhere().to_text(), -24h * 365);
  expect_parts(refusal(), {"in use", "node7", "free 60 s after"});
  EXPECT_LT(fs::last_write_time(file()), fs::file_time_type::clock::now() + 2s) << "its age counts from now on";
  grow_old(70s);
  EXPECT_EQ(refusal(), "");
}

// `cp -r` of the directory of a run that goes on.
TEST_F(Lease, InACopyItIsNotHeld) {
  const RunLease lease(run_, me());
  const fs::path copy = directory_.path() / "runs" / "copy";
  fs::copy(run_, copy);
  EXPECT_TRUE(fs::exists(copy / "lease.json"));
  { const RunLease other(copy, me()); }
  EXPECT_TRUE(fs::is_empty(copy)) << "it was there before the lease";
  expect_parts(refusal(), {"in use", "process " + std::to_string(getpid())});
  // A directory that is renamed is the same one, and an earlier version's lease does not say which one it means.
  LeaseHolder renamed = holder();
  const fs::path moved = directory_.path() / "runs" / "moved";
  fs::create_directories(moved);
  for (const std::string& identity : {identity_of(moved), std::string()}) {
    renamed.directory = identity;
    std::ofstream(moved / "lease.json") << renamed.to_text();
    EXPECT_THROW(RunLease(moved, me()), TryAgainError) << identity;
  }
  // Seen through another mount a directory has another device number, as a copy on another disk may have the same
  // inode: what is renewed is in use, and what is not is free.
  renamed.directory = "1" + identity_of(moved);
  std::ofstream(moved / "lease.json") << renamed.to_text();
  EXPECT_THROW(RunLease(moved, me()), TryAgainError);
  fs::last_write_time(moved / "lease.json", fs::file_time_type::clock::now() - 70s);
  { const RunLease taken(moved, me()); }
  EXPECT_TRUE(fs::is_empty(moved));
}

TEST_F(Lease, OnlyAPlainFileIsOne) {
  const auto message = [&] {
    try {
      const RunLease lease(run_, me());
    } catch (const UsageError& e) {
      return e.message();
    }
    return std::string("(taken)");
  };
  fs::create_directories(run_);
  fs::create_symlink(run_ / "nowhere", file());
  expect_parts(message(), {file().string() + " is a symbolic link", "remove it"});
  fs::remove(file());
  std::ofstream(run_ / "target") << elsewhere().to_text();
  fs::create_symlink("target", file());
  expect_parts(message(), {"is a symbolic link"});
  fs::remove(file());
  fs::create_directory(file());
  expect_parts(message(), {"is a directory"});
  fs::remove(file());
  ASSERT_EQ(mkfifo(file().c_str(), 0600), 0);
  expect_parts(message(), {"is a special file"});
  fs::remove(file());
  EXPECT_EQ(message(), "(taken)");
}

TEST_F(Lease, LeftoversOfCrashesGoAway) {
  LeaseHolder dead = me(), old = elsewhere(), alive = me();
  dead.start_time -= 1;
  write(dead.to_text());
  // Died after it was the successor of the stale lease, and its own successor died, too.
  std::ofstream(run_ / ("lease.json.after-" + dead.token)) << old.to_text();
  fs::last_write_time(run_ / ("lease.json.after-" + dead.token), fs::file_time_type::clock::now() - 70s);
  LeaseHolder third = me();
  third.start_time -= 1;
  std::ofstream(run_ / ("lease.json.after-" + old.token)) << third.to_text();
  std::ofstream(run_ / ("lease.json." + third.token + ".tmp")) << third.to_text();
  std::ofstream(run_ / ("lease.json." + alive.token + ".tmp")) << alive.to_text();
  EXPECT_EQ(refusal(), "");
  EXPECT_EQ(files(), std::vector<std::string>{"lease.json." + alive.token + ".tmp"});
}

}  // namespace
}  // namespace emox
