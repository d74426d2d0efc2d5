#include "data/corpus/place.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <nlohmann/json.hpp>

#include "data/corpus/manifest.h"
#include "data/format/atomic_file.h"
#include "runtime/core/error.h"
#include "runtime/telemetry/log.h"

namespace emox {
namespace {
namespace fs = std::filesystem;

/// Held while a build runs, so that two builds never write into one another. The kernel lets go of it when the process
/// ends.
class BuildLock {
 public:
  explicit BuildLock(const fs::path& path)
      : path_(path), fd_(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)) {
    require<IoError>(fd_ >= 0, "cannot create {}; check that the directory is writable", path.string());
    // A file system without locks (another errno) is used without; a name that no longer leads to the locked file means
    // that its holder has just ended and a third build may have begun.
    const bool taken = ::flock(fd_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    struct stat mine {
    }, named{};
    const bool same = ::fstat(fd_, &mine) == 0 && ::stat(path.c_str(), &named) == 0 && mine.st_ino == named.st_ino;
    if (!taken && same) return;
    ::close(fd_);
    fail<UsageError>("another `emox corpus` is building here ({} is locked): wait for it", path.string());
  }
  ~BuildLock() {
    ::unlink(path_.c_str());
    ::close(fd_);
  }
  BuildLock(const BuildLock&) = delete;
  BuildLock& operator=(const BuildLock&) = delete;

 private:
  fs::path path_;
  int fd_;
};

/// A directory that goes, with all that is in it, unless it was moved away.
class WorkDirectory {
 public:
  explicit WorkDirectory(fs::path path) : path_(std::move(path)) {
    fs::remove_all(path_);
    fs::create_directories(path_);
  }
  ~WorkDirectory() {
    std::error_code ignored;  // after a move there is nothing
    fs::remove_all(path_, ignored);
  }
  WorkDirectory(const WorkDirectory&) = delete;
  WorkDirectory& operator=(const WorkDirectory&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

/// True if a whole corpus with the same options is at the output. Throws if what is there must not be replaced.
bool already_built(const fs::path& output, bool force, const nlohmann::json& options) {
  if (!fs::exists(output) || (fs::is_directory(output) && fs::is_empty(output))) return false;
  require<UsageError>(fs::exists(output / kManifestName),
                      "{} exists and is no corpus (it has no {}): remove it or choose another output", output.string(),
                      kManifestName);
  if (force) return false;
  check_same_options(read_corpus_manifest(output), options, output.string());
  return true;
}

/// Puts the finished directory in the place of what is there. A crash in between leaves no corpus, never a mixture of
/// two.
void move_into_place(const fs::path& work, const fs::path& output) {
  const fs::path old = beside(output.string(), ".old");
  fs::remove_all(old);
  if (fs::exists(output)) fs::rename(output, old);
  fs::rename(work, output);
  const fs::path parent = output.parent_path();
  flush_directory(parent.empty() ? fs::path(".") : parent);
  fs::remove_all(old);
}

}  // namespace

fs::path beside(const std::string& output, const char* suffix) {
  std::string path = output;
  while (path.size() > 1 && path.ends_with('/')) path.pop_back();
  return path + suffix;
}

CorpusReport build_in_place(const std::string& given, bool force, const nlohmann::json& options,
                            const std::function<void(const fs::path&, CorpusReport&)>& build, Log& log) {
  const auto start = std::chrono::steady_clock::now();
  const fs::path output = beside(given, "");
  CorpusReport report;
  report.output = output.string();
  try {
    if (output.has_parent_path()) fs::create_directories(output.parent_path());
    if (already_built(output, force, options)) {
      report.domains = report_of(read_corpus_manifest(output)).domains;
      report.reused = true;
      log.info("{} is already built with these options ({} domains); use --force to build it again", output.string(),
               report.domains.size());
    } else {
      const BuildLock lock(beside(given, ".lock"));
      const WorkDirectory work(beside(given, ".partial"));
      build(work.path(), report);
      write_manifest(work.path(), options, report);
      move_into_place(work.path(), output);
    }
  } catch (const fs::filesystem_error& e) {
    fail<IoError>("building {} failed: {}; check permissions and free space, and run again", output.string(), e.what());
  }
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace emox
