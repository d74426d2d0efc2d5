// Why a file cannot be used. Only what is known to be damaged may be passed over for an older checkpoint, removed or
// moved out of the way; of the others nothing is known, or they are good.
#pragma once

#include <filesystem>
#include <string>

#include "runtime/core/error.h"

namespace emox {

/// A file is missing, or its content is not what was written.
struct DamagedError : IoError {
  using IoError::IoError;
};
/// A file is there, but the system does not let this process read it: mode, owner, a failing disk, storage that is
/// away.
struct UnreadableError : IoError {
  using IoError::IoError;
};
/// Written in another format version: good, but not for this emox.
struct OtherVersionError : IoError {
  using IoError::IoError;
};

/// Throws for a call on `path` that failed with `error` (errno): a DamagedError when that says that there is no such
/// file, an UnreadableError, with what to do, otherwise. "cannot `task` `path`: reason".
[[noreturn]] void fail_to_read(const char* task, const std::filesystem::path& path, int error);

/// What the system says of errno, and where a limit is that people set, which one.
std::string system_reason(int error);

/// Opens the file and closes it: throws as fail_to_read when it cannot be read.
void check_readable(const std::filesystem::path& path);

/// " (owner 0, mode 0600; this process runs as user 1000)" of a file that may not be opened, as far as it can be found
/// out; of the first directory on the way that may not be searched, if that is the reason.
std::string describe_access(const std::filesystem::path& path);

}  // namespace emox
