#include "runtime/telemetry/log.h"

#include <cerrno>
#include <chrono>
#include <cstring>
#include <ctime>
#include <utility>

#include "runtime/core/error.h"

namespace emox {

Log::Log(int rank, const std::string& file_path) : rank_(rank) {
  if (!file_path.empty()) open_file(file_path);
}

Log::~Log() {
  if (file_ != nullptr) std::fclose(file_);
}

void Log::open_file(const std::string& path) {
  std::FILE* f = std::fopen(path.c_str(), "a");
  require<IoError>(f != nullptr, "cannot append to the log file {}: check that its directory exists and is writable",
                   path);
  const std::scoped_lock lock(mutex_);
  if (file_ != nullptr) std::fclose(file_);
  file_ = f;
}

void Log::write(const char* prefix, const std::string& text, bool console) {
  const std::scoped_lock lock(mutex_);
  if (console && console_) {  // where nobody reads any more, the line is in the file alone
    std::fprintf(stderr, "%s%s\n", prefix, text.c_str());
    std::fflush(stderr);
  }
  if (file_ != nullptr) {
    const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
    std::tm tm{};
    gmtime_r(&now, &tm);
    char stamp[32];
    std::strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%SZ", &tm);
    const bool written = std::fprintf(file_, "%s %s%s\n", stamp, prefix, text.c_str()) > 0 && std::fflush(file_) == 0;
    if (!written && !std::exchange(file_failed_, true))
      std::fprintf(stderr, "warning: rank %d cannot write its log file (%s): lines are missing there\n", rank_,
                   std::strerror(errno));
  }
}

void Log::write_once(const char* prefix, const std::string& text) {
  {
    const std::scoped_lock lock(mutex_);
    if (!seen_.insert(text).second) return;
  }
  write(prefix, text, rank_ == 0);
}

}  // namespace emox
