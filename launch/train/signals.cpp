#include "launch/train/signals.h"

#include <csignal>

namespace emox {
namespace {

constexpr int kSignals[] = {SIGUSR1, SIGTERM, SIGINT};
// A signal handler can reach nothing but a global.
volatile std::sig_atomic_t g_received = 0;

void note(int signal) {
  if (signal == SIGINT && g_received == SIGINT) {
    std::signal(SIGINT, SIG_DFL);
    std::raise(SIGINT);
  }
  g_received = signal;
}

}  // namespace

StopSignals::StopSignals() {
  g_received = 0;
  struct sigaction action = {};
  action.sa_handler = note;
  action.sa_flags = SA_RESTART;  // collectives and file writes in progress go on
  for (const int s : kSignals) sigaction(s, &action, nullptr);
}

StopSignals::~StopSignals() {
  for (const int s : kSignals) std::signal(s, SIG_DFL);
}

int StopSignals::received() const { return g_received; }

}  // namespace emox
