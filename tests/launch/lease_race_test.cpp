// Eight jobs that want one run directory in the same instant: exactly one gets it.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "launch/run/lease.h"
#include "runtime/core/error.h"
#include "tests/launch/lease_directory.h"

namespace emox {
namespace {

using namespace std::chrono_literals;
using LeaseRace = test::LeaseDirectory;
using test::elsewhere, test::me, test::start_child;

constexpr int kRacers = 8, kRounds = 200;

// Processes of this host: the stale lease is that of the round before, whose process has ended.
TEST_F(LeaseRace, OneOfEightProcessesTakesAStaleLease) {
  LeaseHolder first = me();
  first.start_time -= 1;
  write(first.to_text());
  for (int round = 0; round < kRounds; ++round) {
    int go[2], results[2], end[2];
    ASSERT_TRUE(pipe(go) == 0 && pipe(results) == 0 && pipe(end) == 0);
    std::vector<pid_t> racers;
    for (int i = 0; i < kRacers; ++i)
      racers.push_back(start_child([&] {
        close(go[1]), close(end[1]);
        char byte = 0;
        if (read(go[0], &byte, 1) != 0) return 1;  // all start when the parent closes it
        std::unique_ptr<RunLease> lease;
        byte = 'l';
        try {
          lease = std::make_unique<RunLease>(run_, me());
          byte = 'w';
        } catch (const TryAgainError&) {
        } catch (const std::exception&) {
          byte = '?';
        }
        if (::write(results[1], &byte, 1) != 1) return 1;
        if (read(end[0], &byte, 1) != 0) return 1;
        _exit(0);  // without giving it back
      }));
    close(results[1]), close(go[1]);
    std::string answers;
    char byte = 0;
    while (answers.size() < kRacers && read(results[0], &byte, 1) == 1) answers += byte;
    const LeaseHolder winner = holder();
    close(end[1]);
    for (const pid_t pid : racers) waitpid(pid, nullptr, 0);
    for (const int fd : {go[0], results[0], end[0]}) close(fd);
    ASSERT_EQ(std::count(answers.begin(), answers.end(), 'w'), 1) << answers << " in round " << round;
    ASSERT_EQ(std::count(answers.begin(), answers.end(), 'l'), kRacers - 1) << answers << " in round " << round;
    ASSERT_EQ(std::count(racers.begin(), racers.end(), winner.pid), 1);
    ASSERT_EQ(files(), std::vector<std::string>{"lease.json"});
  }
}

// Jobs of eight hosts, which know each other by the age of the lease alone; every other round finds no lease at all.
TEST_F(LeaseRace, OneOfEightHostsTakesAStaleLease) {
  for (int round = 0; round < kRounds; ++round) {
    if (round % 2 == 0) write(elsewhere().to_text(), 70s);
    std::atomic<int> waiting = kRacers, won = 0, lost = 0;
    std::atomic<bool> done = false;
    std::vector<std::unique_ptr<RunLease>> leases(kRacers);
    std::vector<std::thread> racers;
    for (std::size_t i = 0; i < kRacers; ++i)
      racers.emplace_back([&, i] {
        LeaseHolder self = me();
        self.host = "node" + std::to_string(i);
        for (--waiting; waiting > 0;) std::this_thread::yield();
        try {
          leases[i] = std::make_unique<RunLease>(run_, self);
          ++won;
        } catch (const TryAgainError&) {
          ++lost;
        }
      });
    for (std::thread& t : racers) t.join();
    ASSERT_EQ(won, 1) << "in round " << round;
    ASSERT_EQ(lost, kRacers - 1);
    for (const auto& lease : leases)
      if (lease != nullptr) {
        ASSERT_NO_THROW(lease->confirm());
      }
    leases.clear();
    ASSERT_TRUE(files().empty()) << files()[0];
  }
}

}  // namespace
}  // namespace emox
