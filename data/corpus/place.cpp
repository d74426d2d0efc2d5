#include "data/corpus/place.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <system_error>
#include <vector>

#include "data/corpus/manifest.h"
#include "runtime/core/error.h"
#include "runtime/files/files.h"
#include "runtime/telemetry/log.h"

namespace emox {
namespace {
namespace fs = std::filesystem;

/// The whole text of the files by which this program knows its own: a file or directory without it is somebody else's.
constexpr std::string_view kMark = "made by `emox corpus` for the time of a build\n";
constexpr const char* kMarkName = "emox-build";
constexpr const char* kContentName = "content";
constexpr const char* kReplacedName = "replaced";

bool write_mark(int fd) { return ::write(fd, kMark.data(), kMark.size()) == static_cast<ssize_t>(kMark.size()); }

bool has_mark(int fd) {
  std::string text(kMark.size() + 1, '\0');
  const ssize_t n = ::pread(fd, text.data(), text.size(), 0);
  return n == static_cast<ssize_t>(kMark.size()) && text.starts_with(kMark);
}

/// Held while a build runs, so that two builds never write into one another. The kernel lets go of it when the process
/// ends. A file of that name that this program did not make is locked like another, and stays.
class BuildLock {
 public:
  explicit BuildLock(const fs::path& path) : path_(path) {
    fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    ours_ = fd_ >= 0;
    if (!ours_) fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    require<IoError>(fd_ >= 0, "cannot open the lock file {}: {}; check that it can be written", path.string(),
                     std::strerror(errno));
    // A file system without locks (another errno) is used without; a name that no longer leads to the locked file means
    // that its holder has just ended and a third build may have begun.
    const bool taken = ::flock(fd_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    struct stat own {
    }, named{};
    const bool same = ::fstat(fd_, &own) == 0 && ::stat(path.c_str(), &named) == 0 && own.st_ino == named.st_ino;
    if (!taken && same) {
      // Unmarked (a full disk), the file of a build that is killed stays for good, which harms nothing.
      if (ours_) static_cast<void>(write_mark(fd_));
      ours_ = ours_ || has_mark(fd_);
      return;
    }
    ::close(fd_);
    fail<UsageError>("another `emox corpus` is building here ({} is locked): wait for it", path.string());
  }
  ~BuildLock() {
    if (ours_) ::unlink(path_.c_str());
    ::close(fd_);
  }
  BuildLock(const BuildLock&) = delete;
  BuildLock& operator=(const BuildLock&) = delete;

 private:
  fs::path path_;
  int fd_ = -1;
  bool ours_ = false;  ///< made by this build, or left by one that was killed
};

/// Removes a work directory: what this program puts into one by name, the mark last, so that a removal that is itself
/// interrupted can be taken up again; the directory only if nothing else is in it.
void remove_work(const fs::path& directory) {
  std::error_code content, replaced, ignored;
  fs::remove_all(directory / kContentName, content);
  fs::remove_all(directory / kReplacedName, replaced);
  if (content || replaced) return;
  fs::remove(directory / kMarkName, ignored);
  fs::remove(directory, ignored);
}

/// Removes the work directories of builds that were killed: marked, and the mark not locked by a running process. One
/// with a corpus that was being replaced stays while nothing is in its place.
void remove_leftovers(const fs::path& path) {
  const std::string prefix = path.filename().string() + ".partial-";
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(path.has_parent_path() ? path.parent_path() : fs::path("."))) {
    if (entry.path().filename().string().starts_with(prefix) && fs::is_directory(entry.symlink_status()))
      found.push_back(entry.path());
  }
  for (const fs::path& directory : found) {
    if (!fs::exists(path) && fs::exists(directory / kReplacedName)) continue;
    const int mark = ::open((directory / kMarkName).c_str(), O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (mark < 0) continue;
    if (has_mark(mark) && ::flock(mark, LOCK_EX | LOCK_NB) == 0) remove_work(directory);
    ::close(mark);
  }
}

/// Something in a corpus' directory that is not of it, if there is any.
std::optional<std::string> file_of_others(const fs::path& output) {
  const auto of_a_label = [](const std::string& name) {
    if (name == "files.txt") return true;
    for (const char* part : {"train", "tune", "heldout"})
      for (const char* kind : {".npy", ".docs.npy", ".files.npy", ".npy.identity.json"})
        if (name == std::string(part) + kind) return true;
    return false;
  };
  for (const auto& entry : fs::directory_iterator(output)) {
    if (entry.path().filename() == kManifestName) continue;
    if (!fs::is_directory(entry.symlink_status()) || !fs::exists(entry.path() / "train.npy"))
      return entry.path().string();
    for (const auto& file : fs::directory_iterator(entry.path()))
      if (!of_a_label(file.path().filename().string())) return file.path().string();
  }
  return std::nullopt;
}

/// True if a whole corpus with the same options is at the output. Throws if what is there must not be replaced.
bool already_built(const fs::path& output, bool force, const nlohmann::json& options) {
  if (!fs::exists(output) || (fs::is_directory(output) && fs::is_empty(output))) return false;
  require<UsageError>(fs::exists(output / kManifestName),
                      "{} exists and is no corpus (it has no {}): remove it or choose another output", output.string(),
                      kManifestName);
  if (force) {
    const auto other = file_of_others(output);
    require<UsageError>(!other,
                        "{} holds {}, which no build has made and --force would remove: move it away, or choose "
                        "another output",
                        output.string(), other.value_or(""));
    return false;
  }
  check_same_options(read_corpus_manifest(output), options, output.string());
  return true;
}

/// Puts the finished directory in the place of what is there. A crash in between leaves no corpus, never a mixture of
/// two.
void move_into_place(WorkDirectory& work, const fs::path& output) {
  const fs::path replaced = work.replaced();
  const bool replaces = fs::exists(output);
  if (replaces) fs::rename(output, replaced);
  try {
    fs::rename(work.path(), output);
  } catch (const fs::filesystem_error&) {
    std::error_code error;
    if (replaces) fs::rename(replaced, output, error);
    if (error) work.keep();
    throw;
  }
  sync_to_disk(parent_of(output));
}

}  // namespace

fs::path beside(const std::string& output, const char* suffix) {
  std::string path = output;
  while (path.size() > 1 && path.ends_with('/')) path.pop_back();
  return path + suffix;
}

WorkDirectory::WorkDirectory(const fs::path& path) {
  remove_leftovers(path);
  std::string name = path.string() + ".partial-XXXXXX";
  require<IoError>(::mkdtemp(name.data()) != nullptr, "cannot create a directory {}: {}; check that {} is writable",
                   name, std::strerror(errno), path.has_parent_path() ? path.parent_path().string() : ".");
  directory_ = name;
  // The mark is locked before it is one: whoever can read it can see that this build is running.
  const fs::path file = directory_ / kMarkName;
  mark_ = ::open(file.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (mark_ >= 0) ::flock(mark_, LOCK_EX | LOCK_NB);
  std::error_code error;
  if (mark_ >= 0 && write_mark(mark_) && fs::create_directory(this->path(), error)) return;
  if (mark_ >= 0) ::close(mark_);
  remove_work(directory_);
  fail<IoError>("cannot write to {}; check the free space of its file system", file.string());
}

WorkDirectory::~WorkDirectory() {
  if (!keep_) remove_work(directory_);
  ::close(mark_);
}

fs::path WorkDirectory::path() const { return directory_ / kContentName; }
fs::path WorkDirectory::replaced() const { return directory_ / kReplacedName; }

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
      WorkDirectory work(output);
      build(work.path(), report);
      write_manifest(work.path(), options, report);
      move_into_place(work, output);
    }
  } catch (const fs::filesystem_error& e) {
    fail<IoError>("building {} failed: {}; check permissions and free space, and run again", output.string(), e.what());
  }
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace emox
