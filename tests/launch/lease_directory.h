// A run directory whose lease tests write, age, take and look at.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "launch/run/lease.h"
#include "runtime/core/error.h"
#include "tests/support/support.h"

namespace emox::test {

inline LeaseHolder me() { return LeaseHolder::self({"emox", "train", "mine.ini"}); }
/// A job on a host that nobody here can look into.
inline LeaseHolder elsewhere() {
  LeaseHolder h = LeaseHolder::self({"emox", "train", "theirs.ini"});
  h.host = "node7", h.boot = "another-boot", h.pid = 4711, h.job = "123";
  return h;
}

class LeaseDirectory : public ::testing::Test {
 protected:
  std::filesystem::path file() const { return run_ / "lease.json"; }
  void write(const std::string& text, std::chrono::seconds age = {}) const {
    std::filesystem::create_directories(run_);
    std::ofstream(file()) << text;
    grow_old(age);
  }
  void grow_old(std::chrono::seconds age) const {
    std::filesystem::last_write_time(file(), std::filesystem::file_time_type::clock::now() - age);
  }
  LeaseHolder holder() const {
    const auto found = LeaseFile::read(file());
    return found && found->holder ? *found->holder : LeaseHolder{};
  }
  /// The refusal's text; empty when the lease was taken.
  std::string refusal(const LeaseHolder& who = me()) const {
    try {
      const RunLease lease(run_, who);
      EXPECT_EQ(holder().token, who.token);
    } catch (const TryAgainError& e) {
      return e.message();
    }
    return "";
  }
  /// Only the lease, or nothing: no leftovers.
  std::vector<std::string> files() const {
    std::vector<std::string> names;
    std::error_code none;  // a directory that was made for the lease goes with it
    for (const auto& entry : std::filesystem::directory_iterator(run_, none)) names.push_back(entry.path().filename());
    return names;
  }

  TemporaryDirectory directory_;
  const std::filesystem::path run_ = directory_.path() / "runs" / "one";
};

/// A child process that runs `body`, whose result is its exit code.
inline pid_t start_child(const std::function<int()>& body) {
  const pid_t pid = fork();
  if (pid == 0) _exit(body());
  return pid;
}

}  // namespace emox::test
