#include "launch/run/stop_request.h"

#include <fmt/format.h>

#include <chrono>
#include <system_error>

#include "launch/run/signals.h"
#include "parallel/comm/together.h"

namespace emox {
namespace {
constexpr int kTimeUp = 1000, kFile = 1001;              // above every signal's number
constexpr std::chrono::seconds kLookEvery{1};            // a shared file system need not answer at every step
const auto kStarted = std::chrono::steady_clock::now();  // of the process
}  // namespace

int StopRequest::reason_here() const {
  if (const int signal = StopSignals::received(); signal != 0) return signal;
  if (!s_.root()) return 0;
  if (file_is_there()) return kFile;
  if (after_minutes_ <= 0) return 0;
  const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - kStarted;
  return passed.count() >= 60 * after_minutes_ ? kTimeUp : 0;
}

bool StopRequest::file_is_there() const {
  const auto now = std::chrono::steady_clock::now();
  if (!seen_.empty() || (looked_.time_since_epoch().count() != 0 && now - looked_ < kLookEvery)) return !seen_.empty();
  looked_ = now;
  std::error_code none;
  for (const std::filesystem::path& file : files_)
    if (!file.empty() && std::filesystem::exists(std::filesystem::symlink_status(file, none))) seen_ = file;
  return !seen_.empty();
}

std::string StopRequest::files_text() const {
  std::string text;
  for (const std::filesystem::path& file : files_)
    if (!file.empty()) text += (text.empty() ? "" : " or ") + file.string();
  return text;
}

bool StopRequest::for_good() const { return reason_ == kFile; }

std::string StopRequest::signal() const { return reason_ > 0 && reason_ < kTimeUp ? signal_name(reason_) : ""; }

bool StopRequest::agreed() {
  if (reason_ != 0) return true;
  reason_ = static_cast<int>(largest_of_ranks(s_.comm(), reason_here()));
  return reason_ != 0;
}

std::string StopRequest::why() const {
  if (reason_ == kTimeUp) return fmt::format("after {:g} minutes (run.stop_after_minutes)", after_minutes_);
  if (reason_ == kFile) return fmt::format("by {}", files_text());
  return fmt::format("by {}", signal_name(reason_));
}

}  // namespace emox
