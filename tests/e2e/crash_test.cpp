// A run whose whole job is killed again and again, in the middle of saves and anywhere else, and started again each
// time, ends with the same state as one that was left alone. EMOX_CRASH_KILLS says how often (crash.sh: 200).
#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <random>
#include <regex>
#include <set>
#include <thread>

#include "parallel/checkpoint/checkpoint.h"
#include "parallel/checkpoint/layout.h"
#include "runtime/files/files.h"
#include "tests/e2e/mpi_job.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr int kRanks = 2;
constexpr std::int64_t kSteps = 24;

double seconds_since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

/// `mpirun -n 2 emox train` in the background. Every rank leaves its pid in a file before it becomes emox.
class Job {
 public:
  Job(const std::string& command, const fs::path& directory) : pids_(directory / "pid"), output_(directory / "output") {
    for (int r = 0; r < kRanks; ++r) fs::remove(pid_file(r));
    launcher_ = fork();
    if (launcher_ == 0) {
      const int out = open(output_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
      dup2(out, STDOUT_FILENO);
      dup2(out, STDERR_FILENO);
      const std::string ranks = test::kEnvironment + ("exec " EMOX_MPIEXEC " -n " + std::to_string(kRanks)) +
                                " bash -c 'echo $$ > " + pids_.string() + ".$OMPI_COMM_WORLD_RANK; exec " + command +
                                "'";
      execl("/bin/bash", "bash", "-c", ranks.c_str(), static_cast<char*>(nullptr));
      _exit(127);
    }
  }
  ~Job() {
    if (running()) kill_all();
  }
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;

  /// Once every rank is known; false when the job ended before.
  bool started() {
    while (running()) {
      ranks_.clear();
      for (int r = 0; r < kRanks; ++r) {
        std::ifstream in(pid_file(r));
        std::string line;
        if (std::getline(in, line) && !in.eof()) ranks_.push_back(std::stoi(line));
      }
      if (ranks_.size() == kRanks) return true;
      std::this_thread::sleep_for(1ms);
    }
    return false;
  }

  bool running() {
    if (launcher_ > 0 && waitpid(launcher_, &status_, WNOHANG) == launcher_) launcher_ = 0;
    return launcher_ > 0;
  }

  int exit_code() const { return WIFEXITED(status_) ? WEXITSTATUS(status_) : -1; }

  std::string output() const { return try_read_text(output_).text; }

  /// As when the power fails: nobody gets to do anything. Returns when nobody is left.
  void kill_all() {
    for (const pid_t rank : ranks_) kill(rank, SIGKILL);
    kill(launcher_, SIGKILL);
    waitpid(launcher_, &status_, 0);
    launcher_ = 0;
    // Orphans come to this process.
    for (const pid_t rank : ranks_)
      while (waitpid(rank, nullptr, 0) < 0 && errno == EINTR) {
      }
  }

 private:
  fs::path pid_file(int rank) const { return pids_.string() + "." + std::to_string(rank); }
  const fs::path pids_, output_;
  pid_t launcher_ = 0;
  std::vector<pid_t> ranks_;
  int status_ = 0;
};

/// Where a run was when it was killed, as its directory shows.
std::string moment_of(const fs::path& checkpoints) {
  if (!fs::exists(checkpoints)) return "before the first save";
  for (const auto& entry : fs::directory_iterator(checkpoints)) {
    const std::string name = entry.path().filename().string();
    if (!is_unfinished(name)) continue;
    if (!name.ends_with(".tmp")) return "while an old one is removed";
    if (fs::exists(entry.path() / "manifest.json")) return "between manifest and rename";
    return "during the shards";
  }
  const std::vector<fs::path> all = list_checkpoints(checkpoints);
  const fs::path latest = checkpoints / "latest";
  if (!all.empty() && fs::is_symlink(latest) && fs::read_symlink(latest).filename() != all.front().filename())
    return "between rename and latest";
  return all.empty() ? "before the first save" : "in training";
}

/// The step that a resumed run must begin from: that of the newest intact checkpoint, 0 without one.
std::int64_t newest_step(const fs::path& checkpoints) {
  const auto found = find_latest(*make_self_communicator(), checkpoints, nullptr);
  return found ? found->manifest.step : 0;
}

std::set<std::string> unfinished_in(const fs::path& checkpoints) {
  std::set<std::string> names;
  std::error_code gone;  // the directory may not be there yet, and what is in it comes and goes
  for (fs::directory_iterator it(checkpoints, gone), end; !gone && it != end; it.increment(gone))
    if (const std::string name = it->path().filename().string(); name.ends_with(".tmp")) names.insert(name);
  return names;
}

class Crash : public test::MpiJob {
 protected:
  Crash() {
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    recipe_.train.steps = kSteps;
    recipe_.parallel.expert_parallel = kRanks;
    recipe_.checkpoint.every_steps = 1;
    recipe_.checkpoint.keep_last = 3;
    test::write_recipe(path_, recipe_);
  }
  ~Crash() override { prctl(PR_SET_CHILD_SUBREAPER, 0); }

  /// Two starts in three save every second step, and every other start does so in the background.
  std::string command(const std::string& name, int start) const {
    return EMOX_BINARY " train " + path_ + " --run.dir=" + run(name).string() +
           " --checkpoint.every_steps=" + (start % 3 == 2 ? "1" : "2") +
           " --checkpoint.async=" + (start % 2 == 0 ? "true" : "false");
  }
  fs::path checkpoints(const std::string& name) const { return run(name) / "checkpoints"; }

  /// Waits until the job saves for the so-many-th time from now; false when it ended before. `seen`: what the last
  /// crash left.
  bool wait_for_save(Job& job, const std::string& name, int which) const {
    std::set<std::string> before = unfinished_in(checkpoints(name));
    for (int saves = 0; job.running(); std::this_thread::sleep_for(200us)) {
      std::set<std::string> now = unfinished_in(checkpoints(name));
      for (const std::string& n : now) saves += before.contains(n) ? 0 : 1;
      if (saves >= which) return true;
      before = std::move(now);
    }
    return false;
  }

  /// Seconds from the appearance of an unfinished directory to its renaming, in a run that nobody disturbs.
  double run_undisturbed(const std::string& name) const {
    Job job(command(name, 0), directory_.path());
    double longest = 0;
    while (wait_for_save(job, name, 1)) {
      const auto begin = Clock::now();
      while (job.running() && !unfinished_in(checkpoints(name)).empty()) std::this_thread::sleep_for(200us);
      longest = std::max(longest, seconds_since(begin));
    }
    EXPECT_EQ(job.exit_code(), 0) << job.output();
    return longest;
  }

  void check_resumed(const Job& job, std::int64_t from) const {
    const std::string text = job.output();
    std::smatch m;
    const bool resumed = std::regex_search(text, m, std::regex("resumed .* from step ([0-9]+)"));
    EXPECT_EQ(resumed ? std::stoll(m[1]) : 0, from) << text;
    EXPECT_EQ(text.find("skipping the checkpoint"), std::string::npos) << text;
  }

  std::map<std::string, int> moments_;
};

TEST_F(Crash, ARunKilledAgainAndAgainEndsAsIfItHadNotBeen) {
  const char* const text = std::getenv("EMOX_CRASH_KILLS");
  const int wanted = text == nullptr ? 6 : std::atoi(text);
  const double save = run_undisturbed("whole");
  std::printf("  a save takes at most %.1f ms\n", save * 1e3);
  std::mt19937 random(7);
  const auto uniform = [&](double most) { return std::uniform_real_distribution<double>(0, most)(random); };
  int kills = 0, runs = 0, starts = 0;
  while (kills < wanted && !HasFailure()) {
    const std::string name = "run" + std::to_string(runs++);
    bool complete = false;
    while (!complete && !HasFailure()) {
      const std::int64_t from = newest_step(checkpoints(name));
      Job job(command(name, starts++), directory_.path());
      ASSERT_TRUE(job.started()) << job.output();
      bool hit = kills < wanted;
      if (hit && starts % 3 == 0) {
        std::this_thread::sleep_for(std::chrono::duration<double>(uniform(1.5)));
      } else if (hit && wait_for_save(job, name, 1 + static_cast<int>(random() % 4))) {
        std::this_thread::sleep_for(std::chrono::duration<double>(uniform(save)));
      }
      while (!hit && job.running()) std::this_thread::sleep_for(10ms);
      if (hit = job.running(); hit) {
        job.kill_all();
        ++kills;
        const std::string moment = moment_of(checkpoints(name));
        ++moments_[moment];
        std::printf("  kill %3d: %-28s started from step %2ld, intact: step %2ld\n", kills, moment.c_str(), from,
                    newest_step(checkpoints(name)));
      } else {
        complete = true;
        EXPECT_EQ(job.exit_code(), 0) << job.output();
      }
      // A job that was killed early may not have said it yet.
      if (complete || job.output().find("step") != std::string::npos) check_resumed(job, from);
    }
    if (!HasFailure()) test::expect_same_history(run(name), run("whole"), kSteps);
    fs::remove_all(run(name));
  }
  std::printf("  %d kills in %d starts of %d runs of %ld steps\n", kills, starts, runs, kSteps);
  for (const auto& [moment, n] : moments_) std::printf("  %-28s %3d\n", moment.c_str(), n);
  EXPECT_EQ(kills, wanted);
  EXPECT_GT(moments_["during the shards"], 0);
}

}  // namespace
}  // namespace emox
