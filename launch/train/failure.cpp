#include "launch/train/failure.h"

#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <string>
#include <thread>

#include "runtime/core/error.h"

namespace emox {
namespace {

enum : int { kFailed = 1, kUsage = 2, kTryAgain = 75 };

constexpr unsigned kSecondsToLeave = 60;
constexpr std::chrono::milliseconds kRankZeroFirst{500};

thread_local std::string g_said;
std::atomic<bool> g_ends_process = false;

}  // namespace

int say_failure(const std::exception& error) {
  const auto* known = dynamic_cast<const Error*>(&error);
  const bool usage = dynamic_cast<const UsageError*>(&error) != nullptr;
  const bool again = dynamic_cast<const TryAgainError*>(&error) != nullptr;
  if (g_said != error.what()) {
    // what() of an Error adds the rank and the place in the source, which a report of a failure needs.
    const std::string text = usage || again      ? known->message()
                             : known != nullptr ? known->what()
                                                : fmt::format("{} [rank {}]", error.what(), error_rank());
    // Not fmt::print: it throws where nobody reads any more, and the exit code must come through all the same.
    std::fputs(("emox: " + text + "\n").c_str(), stderr);
    std::fflush(stderr);
    g_said = error.what();
    // By SIGALRM: whatever keeps this thread then, and whoever else waits for it, comes to an end.
    if (g_ends_process) ::alarm(kSecondsToLeave);
  }
  return usage ? kUsage : again ? kTryAgain : kFailed;
}

void saying_why(int rank, const std::function<void()>& body) {
  try {
    body();
  } catch (const std::exception& error) {
    if (rank != 0) std::this_thread::sleep_for(kRankZeroFirst);
    say_failure(error);
    throw;
  }
}

FailureEndsProcess::FailureEndsProcess() { g_ends_process = true; }
FailureEndsProcess::~FailureEndsProcess() {
  g_ends_process = false;
  ::alarm(0);
}

}  // namespace emox
