#include "launch/run/failure.h"

#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <new>
#include <string>
#include <thread>

#include "parallel/comm/mpi_world.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

constexpr unsigned kSecondsToLeave = 60;
constexpr std::chrono::milliseconds kRankZeroFirst{500};
constexpr double kSilentS = 0.5, kMeetS = 1.5;  // ranks that fail together do so in one collective

thread_local std::string g_said;
std::atomic<bool> g_ends_process = false;
FailureOf g_met = FailureOf::NoJob;

// What people read of an error; what() of an Error adds the rank and the place in the source, which a report of a
// failure needs. The standard library's own text of a file's error names its function first.
std::string text_of(const std::exception& error) {
  if (dynamic_cast<const UsageError*>(&error) != nullptr || dynamic_cast<const TryAgainError*>(&error) != nullptr)
    return dynamic_cast<const Error&>(error).message();
  if (dynamic_cast<const Error*>(&error) != nullptr) return error.what();
  if (const auto* file = dynamic_cast<const std::filesystem::filesystem_error*>(&error))
    return fmt::format("{}{}: {} [rank {}]", file->path1().string(),
                       file->path2().empty() ? "" : " and " + file->path2().string(), file->code().message(),
                       error_rank());
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr)
    return fmt::format("out of memory [rank {}]", error_rank());
  return fmt::format("{} [rank {}]", error.what(), error_rank());
}

// The same on all ranks that failed alike: without the rank and the place in the source.
std::uint64_t mark_of(const std::exception& error) {
  const auto* own = dynamic_cast<const Error*>(&error);
  return std::hash<std::string>{}(own != nullptr ? own->message() : error.what());
}

void leave_in_time() {
  // By SIGALRM: whatever keeps this thread then, and whoever else waits for it, comes to an end.
  if (g_ends_process) ::alarm(kSecondsToLeave);
}

// Names that can be no file's are the user's; a full disk or a lost mount is not.
bool is_usage(const std::exception& error) {
  if (dynamic_cast<const UsageError*>(&error) != nullptr) return true;
  const auto* file = dynamic_cast<const std::filesystem::filesystem_error*>(&error);
  if (file == nullptr) return false;
  for (const std::errc name : {std::errc::filename_too_long, std::errc::too_many_symbolic_link_levels,
                               std::errc::not_a_directory, std::errc::invalid_argument})
    if (file->code() == name) return true;
  return false;
}

}  // namespace

int say_failure(const std::exception& error) {
  const bool usage = is_usage(error);
  const bool again = dynamic_cast<const TryAgainError*>(&error) != nullptr;
  if (g_said != error.what()) {
    // Not fmt::print: it throws where nobody reads any more, and the exit code must come through all the same.
    const std::string text = text_of(error);  // some name their command: "emox study: ..."
    std::fputs(((text.starts_with("emox ") ? "" : "emox: ") + text + "\n").c_str(), stderr);
    std::fflush(stderr);
    g_said = error.what();
    leave_in_time();
  }
  return usage ? kUsage : again ? kTryAgain : kFailed;
}

void saying_why(int rank, const std::function<void()>& body,
                const std::function<bool(const std::exception&)>& expected) {
  try {
    body();
  } catch (const std::exception& error) {
    if (expected && expected(error)) throw;
    if (rank == 0) say_failure(error);
    FailureOf met = meet_in_failure(mark_of(error), kSilentS);
    if (met == FailureOf::NoJob && rank != 0) std::this_thread::sleep_for(kRankZeroFirst);
    if (met == FailureOf::Alike && rank != 0) {
      g_said = error.what();
      leave_in_time();
    }
    say_failure(error);
    met = meet_in_failure(mark_of(error), kMeetS);
    if (met != FailureOf::NoJob) g_met = met;
    throw;
  }
}

FailedTogether failed_together() {
  const bool alike = g_met == FailureOf::Alike;
  return {alike || g_met == FailureOf::Unlike, alike};
}

FailureEndsProcess::FailureEndsProcess() { g_ends_process = true; }
FailureEndsProcess::~FailureEndsProcess() {
  g_ends_process = false;
  ::alarm(0);
}

int guarded(const std::function<int()>& body) {
  try {
    return body();
  } catch (const std::exception& error) {
    return say_failure(error);
  }
}

}  // namespace emox
