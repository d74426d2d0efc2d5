#include "runtime/files/file_error.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace emox {
namespace {

namespace fs = std::filesystem;

bool leads_nowhere(const fs::path& path) {
  struct stat found = {};
  return lstat(path.c_str(), &found) == 0 && S_ISLNK(found.st_mode) && stat(path.c_str(), &found) != 0;
}

/// Nothing of what was written can be there: no such file, or something else of its name. A link that leads nowhere,
/// the file or its directory, is not that: its storage may be away.
bool means_missing(const fs::path& path, int error) {
  if (error == ENOTDIR || error == EISDIR || error == ELOOP) return true;
  return error == ENOENT && !leads_nowhere(path) && !leads_nowhere(path.parent_path());
}

std::string owner_and_mode(const struct stat& found) {
  return fmt::format("owner {}, mode {:04o}; this process runs as user {}", found.st_uid, found.st_mode & 07777,
                     geteuid());
}

}  // namespace

std::string describe_access(const fs::path& path) {
  struct stat found = {};
  if (stat(path.c_str(), &found) == 0) return " (" + owner_and_mode(found) + ")";
  // The outermost directory that may not be searched can itself be looked at.
  fs::path directory;
  for (const fs::path& part : fs::absolute(path).parent_path()) {
    directory /= part;
    if (stat(directory.c_str(), &found) != 0) return "";
    if (faccessat(AT_FDCWD, directory.c_str(), X_OK, AT_EACCESS) != 0)
      return fmt::format(" ({}: {})", directory.string(), owner_and_mode(found));
  }
  return "";
}

std::string system_reason(int error) {
  const std::string text = std::strerror(error);
  return error == EFBIG ? text + " (a limit on the size of files: see ulimit -f)" : text;
}

void fail_to_read(const char* task, const fs::path& path, int error) {
  const std::string what = fmt::format("cannot {} {}: {}", task, path.string(), std::strerror(error));
  if (means_missing(path, error) && error == ENOENT) fail<DamagedError>("{} is missing", path.string());
  if (means_missing(path, error)) fail<DamagedError>("{}", what);
  const bool forbidden = error == EACCES || error == EPERM;
  if (forbidden)
    fail<UnreadableError>("{}{}: make it readable (chmod, chown), or run as its owner", what, describe_access(path));
  if (error == ENOENT) fail<UnreadableError>("{}: it is a link to something that is not there now", what);
  if (error == EMFILE || error == ENFILE || error == ENOMEM) fail<UnreadableError>("{}", what);
  fail<UnreadableError>("{}: look after the disk or the file system", what);
}

void check_readable(const fs::path& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail_to_read("open", path, errno);
  close(fd);
}

}  // namespace emox
