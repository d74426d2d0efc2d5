#include "tests/faults/faulty_disk.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <climits>
#include <condition_variable>
#include <cstdarg>
#include <cstdio>
#include <map>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "runtime/core/idx.h"

namespace emox::test {
namespace {

struct Watch {
  std::string directory;
  std::optional<DiskFault> fault;
  bool struck = false;
  bool stalls = false;
  std::vector<DiskCall> calls;
  std::map<std::pair<DiskCallKind, std::string>, int> count;
};

std::atomic<bool> watching{false};
std::mutex mutex;
Watch watch;  // guarded by mutex
std::condition_variable released;

/// What becomes of a call.
struct Verdict {
  bool watched = false;
  int error = 0;  ///< not 0: fails with it
  bool shortened = false;
};

bool changes_something(DiskCallKind kind, bool for_writing) {
  return kind != DiskCallKind::Read && (kind != DiskCallKind::Open || for_writing);
}

Verdict strike(const DiskFault& fault, DiskCallKind kind, bool for_writing, bool here) {
  using enum DiskFaultKind;
  const bool later = watch.struck && !here && changes_something(kind, for_writing);
  Verdict v{.watched = true};
  if (here && (fault.kind == Short || fault.kind == ShortThenFull)) v.shortened = true;
  if ((here && (fault.kind == Once || fault.kind == FromThenOn)) ||
      (later && (fault.kind == FromThenOn || fault.kind == ShortThenFull)))
    v.error = fault.error;
  return v;
}

std::optional<std::string> below_watched(const std::string& path) {
  const std::string& directory = watch.directory;
  if (path == directory) return "";
  if (path.size() <= directory.size() || !path.starts_with(directory) || path[directory.size()] != '/')
    return std::nullopt;
  return path.substr(directory.size() + 1);
}

/// Notes the call and says what becomes of it.
Verdict judge(DiskCallKind kind, const char* function, const std::string& path, const std::string& from = "",
              std::size_t bytes = 0, bool for_writing = true) {
  std::unique_lock lock(mutex);
  if (!watching) return {};
  const std::optional<std::string> name = below_watched(path);
  if (!name) return {};
  const int nth = watch.count[{kind, *name}]++;
  watch.calls.push_back({kind, *name, nth, bytes, function, below_watched(from).value_or(from)});
  if (!watch.fault) return {.watched = true};
  const DiskCall& at = watch.fault->at;
  const bool here = kind == at.kind && *name == at.path && nth == at.nth;
  const Verdict v = strike(*watch.fault, kind, for_writing, here);
  watch.struck |= here;
  if (here && watch.fault->kind == DiskFaultKind::Stall) released.wait(lock, [] { return !watch.stalls; });
  return v;
}

std::string path_of(int descriptor) {
  std::array<char, PATH_MAX> path{};
  const std::string link = "/proc/self/fd/" + std::to_string(descriptor);
  const ssize_t n = readlink(link.c_str(), path.data(), path.size());
  return n < 0 ? "" : std::string(path.data(), idx(n));
}

std::string path_at(int directory, const char* path) {
  if (path[0] == '/') return path;
  if (directory != AT_FDCWD) return path_of(directory) + "/" + path;
  std::array<char, PATH_MAX> here{};
  return getcwd(here.data(), here.size()) == nullptr ? path : std::string(here.data()) + "/" + path;
}

/// The function that ours hides: the C library's, or a sanitizer's.
template <typename Function>
Function* hidden(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

int failed(int error) {
  errno = error;
  return -1;
}

/// A call with one descriptor or one or two paths, which fails or is made.
template <typename Call>
int one_call(DiskCallKind kind, const char* function, const std::string& path, const std::string& from,
             const Call& call) {
  const Verdict v = judge(kind, function, path, from);
  return v.error != 0 ? failed(v.error) : call();
}

template <typename Call>
ssize_t transfer(DiskCallKind kind, const char* function, int descriptor, std::size_t bytes, const Call& call) {
  if (!watching) return call(bytes);
  const Verdict v = judge(kind, function, path_of(descriptor), "", bytes);
  if (v.error != 0) return failed(v.error);
  return call(v.shortened && bytes > 1 ? bytes / 2 : bytes);
}

int synced(const char* function, int descriptor, int (*call)(int)) {
  if (!watching) return call(descriptor);
  const Verdict v = judge(DiskCallKind::Sync, function, path_of(descriptor));
  if (v.error != 0) return failed(v.error);
  return v.watched ? 0 : call(descriptor);
}

template <typename Call>
int opened(const char* function, int directory, const char* path, int flags, const Call& call) {
  if (!watching) return call();
  const Verdict v = judge(DiskCallKind::Open, function, path_at(directory, path), "", 0,
                          (flags & (O_WRONLY | O_RDWR | O_CREAT)) != 0);
  return v.error != 0 ? failed(v.error) : call();
}

}  // namespace

std::string_view name_of(DiskCallKind kind) {
  constexpr std::array<std::string_view, 8> names = {"open", "read",   "write", "truncate",
                                                     "sync", "rename", "mkdir", "link"};
  return names[idx(kind)];
}

FaultyDisk::FaultyDisk(const std::filesystem::path& directory, std::optional<DiskFault> fault) {
  const std::lock_guard lock(mutex);
  if (watching) throw std::logic_error("one directory is watched at a time");
  watch = {};
  watch.directory = std::filesystem::canonical(directory).string();
  watch.fault = std::move(fault);
  watch.stalls = true;
  watching = true;
}

FaultyDisk::~FaultyDisk() {
  release();
  watching = false;
}

void FaultyDisk::release() {
  const std::lock_guard lock(mutex);
  watch.stalls = false;
  released.notify_all();
}

std::vector<DiskCall> FaultyDisk::calls() const {
  const std::lock_guard lock(mutex);
  return watch.calls;
}

bool FaultyDisk::struck() const {
  const std::lock_guard lock(mutex);
  return watch.struck;
}

}  // namespace emox::test

// The names that the libraries call. The mode of an open is read from the arguments only where it is there.

using namespace emox::test;

namespace {
mode_t mode_from(int flags, va_list arguments) {
  return (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(arguments, mode_t) : 0;
}
}  // namespace

extern "C" {

int open(const char* path, int flags, ...) {
  static auto* const next = hidden<int(const char*, int, ...)>("open");
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = mode_from(flags, arguments);
  va_end(arguments);
  return opened("open", AT_FDCWD, path, flags, [&] { return next(path, flags, mode); });
}

int open64(const char* path, int flags, ...) {
  static auto* const next = hidden<int(const char*, int, ...)>("open64");
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = mode_from(flags, arguments);
  va_end(arguments);
  return opened("open64", AT_FDCWD, path, flags, [&] { return next(path, flags, mode); });
}

int openat(int directory, const char* path, int flags, ...) {
  static auto* const next = hidden<int(int, const char*, int, ...)>("openat");
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = mode_from(flags, arguments);
  va_end(arguments);
  return opened("openat", directory, path, flags, [&] { return next(directory, path, flags, mode); });
}

int openat64(int directory, const char* path, int flags, ...) {
  static auto* const next = hidden<int(int, const char*, int, ...)>("openat64");
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = mode_from(flags, arguments);
  va_end(arguments);
  return opened("openat64", directory, path, flags, [&] { return next(directory, path, flags, mode); });
}

ssize_t read(int descriptor, void* data, std::size_t bytes) {
  static auto* const next = hidden<ssize_t(int, void*, std::size_t)>("read");
  return transfer(DiskCallKind::Read, "read", descriptor, bytes,
                  [&](std::size_t n) { return next(descriptor, data, n); });
}

ssize_t pread64(int descriptor, void* data, std::size_t bytes, off64_t at) {
  static auto* const next = hidden<ssize_t(int, void*, std::size_t, off64_t)>("pread64");
  return transfer(DiskCallKind::Read, "pread64", descriptor, bytes,
                  [&](std::size_t n) { return next(descriptor, data, n, at); });
}

ssize_t pread(int descriptor, void* data, std::size_t bytes, off_t at) {
  static auto* const next = hidden<ssize_t(int, void*, std::size_t, off_t)>("pread");
  return transfer(DiskCallKind::Read, "pread", descriptor, bytes,
                  [&](std::size_t n) { return next(descriptor, data, n, at); });
}

ssize_t write(int descriptor, const void* data, std::size_t bytes) {
  static auto* const next = hidden<ssize_t(int, const void*, std::size_t)>("write");
  return transfer(DiskCallKind::Write, "write", descriptor, bytes,
                  [&](std::size_t n) { return next(descriptor, data, n); });
}

ssize_t pwrite(int descriptor, const void* data, std::size_t bytes, off_t at) {
  static auto* const next = hidden<ssize_t(int, const void*, std::size_t, off_t)>("pwrite");
  return transfer(DiskCallKind::Write, "pwrite", descriptor, bytes,
                  [&](std::size_t n) { return next(descriptor, data, n, at); });
}

ssize_t pwrite64(int descriptor, const void* data, std::size_t bytes, off64_t at) {
  static auto* const next = hidden<ssize_t(int, const void*, std::size_t, off64_t)>("pwrite64");
  return transfer(DiskCallKind::Write, "pwrite64", descriptor, bytes,
                  [&](std::size_t n) { return next(descriptor, data, n, at); });
}

ssize_t writev(int descriptor, const iovec* parts, int count) {
  static auto* const next = hidden<ssize_t(int, const iovec*, int)>("writev");
  std::size_t bytes = 0;
  for (int i = 0; i < count; ++i) bytes += parts[i].iov_len;
  return transfer(DiskCallKind::Write, "writev", descriptor, bytes, [&](std::size_t n) {
    if (n == bytes) return next(descriptor, parts, count);
    const iovec half{parts[0].iov_base, std::min(n, parts[0].iov_len)};
    return next(descriptor, &half, 1);
  });
}

int ftruncate(int descriptor, off_t length) noexcept {
  static auto* const next = hidden<int(int, off_t)>("ftruncate");
  if (!watching) return next(descriptor, length);
  return one_call(DiskCallKind::Truncate, "ftruncate", path_of(descriptor), "",
                  [&] { return next(descriptor, length); });
}

int ftruncate64(int descriptor, off64_t length) noexcept {
  static auto* const next = hidden<int(int, off64_t)>("ftruncate64");
  if (!watching) return next(descriptor, length);
  return one_call(DiskCallKind::Truncate, "ftruncate64", path_of(descriptor), "",
                  [&] { return next(descriptor, length); });
}

int fsync(int descriptor) { return synced("fsync", descriptor, hidden<int(int)>("fsync")); }
int fdatasync(int descriptor) { return synced("fdatasync", descriptor, hidden<int(int)>("fdatasync")); }

int rename(const char* from, const char* to) noexcept {
  static auto* const next = hidden<int(const char*, const char*)>("rename");
  if (!watching) return next(from, to);
  return one_call(DiskCallKind::Rename, "rename", path_at(AT_FDCWD, to), path_at(AT_FDCWD, from),
                  [&] { return next(from, to); });
}

int renameat2(int from_directory, const char* from, int to_directory, const char* to, unsigned flags) noexcept {
  static auto* const next = hidden<int(int, const char*, int, const char*, unsigned)>("renameat2");
  if (!watching) return next(from_directory, from, to_directory, to, flags);
  return one_call(DiskCallKind::Rename, "renameat2", path_at(to_directory, to), path_at(from_directory, from),
                  [&] { return next(from_directory, from, to_directory, to, flags); });
}

int mkdir(const char* path, mode_t mode) noexcept {
  static auto* const next = hidden<int(const char*, mode_t)>("mkdir");
  if (!watching) return next(path, mode);
  return one_call(DiskCallKind::MakeDirectory, "mkdir", path_at(AT_FDCWD, path), "", [&] { return next(path, mode); });
}

int symlink(const char* target, const char* path) noexcept {
  static auto* const next = hidden<int(const char*, const char*)>("symlink");
  if (!watching) return next(target, path);
  return one_call(DiskCallKind::Link, "symlink", path_at(AT_FDCWD, path), target, [&] { return next(target, path); });
}

int link(const char* from, const char* to) noexcept {
  static auto* const next = hidden<int(const char*, const char*)>("link");
  if (!watching) return next(from, to);
  return one_call(DiskCallKind::Link, "link", path_at(AT_FDCWD, to), path_at(AT_FDCWD, from),
                  [&] { return next(from, to); });
}

}  // extern "C"
