#include "launch/train/signals.h"

#include <atomic>
#include <memory>
#include <mutex>
#include <thread>

namespace emox {
namespace {

constexpr int kSignals[] = {SIGUSR1, SIGTERM, SIGINT};

// Signals belong to the process, so all objects share these.
std::atomic<int> g_received = 0;
std::mutex g_mutex;
int g_objects = 0;

sigset_t stop_set() {
  sigset_t set;
  sigemptyset(&set);
  for (const int s : kSignals) sigaddset(&set, s);
  return set;
}

void note(int signal) {
  if (signal == SIGINT && g_received == SIGINT) {
    const sigset_t set = stop_set();
    std::signal(SIGINT, SIG_DFL);
    pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
    std::raise(SIGINT);
  }
  g_received = signal;
}

// Waits for the signals that its maker, and so itself, has blocked.
class Waiter {
 public:
  ~Waiter() {
    ends_ = true;
    pthread_kill(thread_.native_handle(), SIGUSR1);
    thread_.join();
  }

 private:
  void wait() const {
    const sigset_t set = stop_set();
    for (int signal = 0; sigwait(&set, &signal) == 0 && !ends_;) note(signal);
  }
  std::atomic<bool> ends_ = false;
  std::thread thread_{[this] { wait(); }};
};

std::unique_ptr<Waiter> g_waiter;

}  // namespace

StopSignals::StopSignals() {
  const sigset_t set = stop_set();
  pthread_sigmask(SIG_BLOCK, &set, &before_);
  const std::lock_guard lock(g_mutex);
  if (g_objects++ > 0) return;
  g_received = 0;
  // For threads older than this object, and because what is ignored (nohup) never reaches a waiting thread.
  struct sigaction action = {};
  action.sa_handler = note;
  action.sa_flags = SA_RESTART;  // collectives and file writes in progress go on
  for (const int s : kSignals) sigaction(s, &action, nullptr);
  g_waiter = std::make_unique<Waiter>();
}

StopSignals::~StopSignals() {
  {
    const std::lock_guard lock(g_mutex);
    if (--g_objects == 0) {
      g_waiter.reset();
      for (const int s : kSignals) {
        std::signal(s, SIG_IGN);  // forgets what came too late to matter
        std::signal(s, SIG_DFL);
      }
    }
  }
  pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

int StopSignals::received() const { return g_received; }

}  // namespace emox
