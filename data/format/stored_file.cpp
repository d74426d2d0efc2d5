#include "data/format/stored_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

struct ReadDescriptor {
  explicit ReadDescriptor(int number) : fd(number) {}
  ReadDescriptor(const ReadDescriptor&) = delete;
  ReadDescriptor& operator=(const ReadDescriptor&) = delete;
  ~ReadDescriptor() { ::close(fd); }
  const int fd;
};
using Open = std::shared_ptr<const ReadDescriptor>;

/// The files read last stay open, shared by all threads. A corpus may have more files than a process may open.
class OpenFiles {
 public:
  Open find(std::uint64_t number) {
    const std::lock_guard lock(mutex_);
    for (auto i = files_.begin(); i != files_.end(); ++i)
      if (i->first == number) {
        files_.splice(files_.begin(), files_, i);
        return i->second;
      }
    return nullptr;
  }
  void keep(std::uint64_t number, Open file) {
    constexpr std::size_t kMost = 64;
    const std::lock_guard lock(mutex_);
    files_.emplace_front(number, std::move(file));
    while (files_.size() > kMost) files_.pop_back();
  }
  void drop(std::uint64_t number) {
    const std::lock_guard lock(mutex_);
    files_.remove_if([&](const auto& f) { return f.first == number; });
  }
  bool drop_all() {
    const std::lock_guard lock(mutex_);
    const bool any = !files_.empty();
    files_.clear();
    return any;
  }

 private:
  std::mutex mutex_;
  std::list<std::pair<std::uint64_t, Open>> files_;  ///< the one used last in front
};

OpenFiles& open_files() {
  static OpenFiles files;
  return files;
}

std::uint64_t next_number() {
  static std::atomic<std::uint64_t> number = 0;
  return ++number;
}

/// A descriptor, or null and errno.
Open open_file(const std::filesystem::path& path) {
  // Without O_NONBLOCK a pipe under the name would wait for its writer.
  const auto attempt = [&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); };
  int fd = attempt();
  if (fd < 0 && (errno == EMFILE || errno == ENFILE) && open_files().drop_all()) fd = attempt();
  return fd < 0 ? nullptr : std::make_shared<const ReadDescriptor>(fd);
}

bool same_file(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino && a.st_mtim.tv_sec == b.st_mtim.tv_sec &&
         a.st_mtim.tv_nsec == b.st_mtim.tv_nsec;
}

}  // namespace

// Several threads may be the first to read; the first of them says what the file is.
struct StoredFile::Seen {
  /// Whether `info` is what was seen first.
  bool agrees(const struct stat& info) {
    const std::lock_guard lock(mutex);
    if (!first) first = info;
    return same_file(*first, info);
  }
  std::mutex mutex;
  std::optional<struct stat> first;
};

StoredFile::StoredFile(std::filesystem::path path)
    : path_(std::move(path)), number_(next_number()), seen_(std::make_unique<Seen>()) {
  const Open file = open_file(path_);
  require<UsageError>(file != nullptr, "cannot open {}: {}; check the path in the recipe", path_.string(),
                      std::strerror(errno));
  struct stat info {};
  require<UsageError>(::fstat(file->fd, &info) == 0 && S_ISREG(info.st_mode), "{} is not a regular file",
                      path_.string());
  require<UsageError>(info.st_size > 0, "{} is empty (0 bytes): build or copy it again", path_.string());
  bytes_ = info.st_size;
  seen_->agrees(info);
  open_files().keep(number_, file);
}

StoredFile::StoredFile(std::filesystem::path path, std::int64_t bytes)
    : path_(std::move(path)), bytes_(bytes), number_(next_number()), seen_(std::make_unique<Seen>()) {}

StoredFile::StoredFile(StoredFile&& other) noexcept
    : path_(std::move(other.path_)),
      bytes_(other.bytes_),
      number_(std::exchange(other.number_, 0)),
      seen_(std::move(other.seen_)) {}

StoredFile::~StoredFile() {
  if (number_ != 0) open_files().drop(number_);
}

void StoredFile::read(std::int64_t at, std::span<std::byte> out) const {
  Open file = open_files().find(number_);
  if (file == nullptr) {
    file = open_file(path_);
    require<IoError>(file != nullptr, "cannot open {} again: {}", path_.string(), std::strerror(errno));
    struct stat info {};
    require<IoError>(::fstat(file->fd, &info) == 0, "cannot read {}: {}", path_.string(), std::strerror(errno));
    require<IoError>(info.st_size == bytes_,
                     "{} has {} bytes, but had {} when it was first looked at: it was changed while it is in use; put "
                     "it back and give the same command again",
                     path_.string(), info.st_size, bytes_);
    require<IoError>(seen_->agrees(info),
                     "{} is not the file that was first opened, or was written to since (as many bytes, {}): it was "
                     "replaced while it is in use; put it back and give the same command again",
                     path_.string(), bytes_);
    open_files().keep(number_, file);
  }
  for (std::size_t done = 0; done < out.size();) {
    const ssize_t n = ::pread(file->fd, out.data() + done, out.size() - done, at + static_cast<std::int64_t>(done));
    if (n < 0 && errno == EINTR) continue;
    require<IoError>(n >= 0, "cannot read {} at byte {}: {}", path_.string(), at + static_cast<std::int64_t>(done),
                     std::strerror(errno));
    require<IoError>(n > 0,
                     "{} ends before byte {}, but had {} bytes when it was first looked at: it was cut while it is in "
                     "use; put it back and give the same command again",
                     path_.string(), at + static_cast<std::int64_t>(done) + 1, bytes_);
    done += idx(n);
  }
}

}  // namespace emox
