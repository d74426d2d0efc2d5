#include "launch/run/signals.h"

#include <atomic>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace emox {
namespace {

// Signals belong to the process, so all objects share these.
std::atomic<int> g_received = 0;
std::mutex g_mutex;
int g_objects = 0;

bool ignored(int signal) {
  struct sigaction action = {};
  return sigaction(signal, nullptr, &action) == 0 && action.sa_handler == SIG_IGN;
}

/// SIGHUP only where nobody has asked to outlive the terminal. The others are taken even when ignored: shells ignore
/// SIGINT for what they start in the background, job scripts SIGUSR1 until their program can take it.
const std::vector<int>& stop_signals() {
  static const std::vector<int> signals = ignored(SIGHUP) ? std::vector{SIGUSR1, SIGUSR2, SIGTERM, SIGINT}
                                                          : std::vector{SIGUSR1, SIGUSR2, SIGTERM, SIGINT, SIGHUP};
  return signals;
}

sigset_t stop_set() {
  sigset_t set;
  sigemptyset(&set);
  for (const int s : stop_signals()) sigaddset(&set, s);
  return set;
}

void note(int signal) {
  if (signal == SIGINT && g_received == SIGINT) {
    const sigset_t set = stop_set();
    std::signal(SIGINT, SIG_DFL);
    pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
    std::raise(SIGINT);
  }
  // Job scripts pass an end on in their own way: it stays one.
  if (g_received != SIGTERM || (signal != SIGUSR1 && signal != SIGUSR2)) g_received = signal;
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

void hold_signals() {
  const sigset_t set = stop_set();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  for (const int s : {SIGPIPE, SIGXFSZ}) std::signal(s, SIG_IGN);
}

void let_signals_end() {
  const sigset_t set = stop_set();
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

const char* signal_name(int signal) {
  switch (signal) {
    case SIGUSR1:
      return "SIGUSR1";
    case SIGUSR2:
      return "SIGUSR2";
    case SIGTERM:
      return "SIGTERM";
    case SIGINT:
      return "SIGINT";
    case SIGHUP:
      return "SIGHUP";
    default:
      return "a signal";
  }
}

StopSignals::StopSignals() {
  const sigset_t set = stop_set();
  pthread_sigmask(SIG_BLOCK, &set, &before_);
  const std::lock_guard lock(g_mutex);
  if (g_objects++ > 0) return;
  g_received = 0;
  // For threads older than this object, and because what is ignored never reaches a waiting thread.
  struct sigaction action = {};
  action.sa_handler = note;
  action.sa_flags = SA_RESTART;  // collectives and file writes in progress go on
  for (const int s : stop_signals()) sigaction(s, &action, nullptr);
  g_waiter = std::make_unique<Waiter>();
}

StopSignals::~StopSignals() {
  {
    const std::lock_guard lock(g_mutex);
    if (--g_objects == 0) {
      g_waiter.reset();
      for (const int s : stop_signals()) {
        std::signal(s, SIG_IGN);  // forgets what came too late to matter
        std::signal(s, SIG_DFL);
      }
      g_received = 0;
    }
  }
  pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

int StopSignals::received() { return g_received; }

}  // namespace emox
