// Who holds a run directory, as lease.json says it, and whether that is still so.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace emox {

struct LeaseHolder {
  std::string host;
  std::string boot;           ///< the kernel's boot id
  std::string pid_namespace;  ///< "pid:[4026531836]": pids are compared within one only
  std::int64_t pid = 0;
  std::int64_t start_time = 0;  ///< of the process, in clock ticks since boot: tells it from a later one with its pid
  std::string job;              ///< Slurm's id; empty outside of a job
  std::string command;
  std::string since, renewed;  ///< UTC, for people; never compared
  std::string directory;       ///< device and inode of the directory that is held; empty: an earlier version's
  std::string token;           ///< 32 hexadecimal digits, random: no two leases have the same

  /// This process, with a new token.
  static LeaseHolder self(const std::vector<std::string>& command);
  /// Of lease.json; the length does not depend on the time of renewal.
  std::string to_text() const;
  static std::optional<LeaseHolder> from_text(const std::string& text);
  /// "process 71 on node3 (Slurm job 5), `emox train tiny.ini`, since ..., last renewed ..."
  std::string describe() const;
};

using FileTime = std::chrono::nanoseconds;  ///< since the epoch, by the file system's clock

/// What is at a lease's place.
struct LeaseFile {
  std::filesystem::path path;
  std::string text;
  std::optional<LeaseHolder> holder;  ///< nothing when the text is none: a crash may leave an empty file
  FileTime changed{};

  /// Nothing where no file is. IoError when there is one that cannot be read; UsageError when it is no plain file.
  static std::optional<LeaseFile> read(const std::filesystem::path& path);
};

/// Whether the holder is a process of this machine that `other` can look for: then its age does not matter.
bool can_be_looked_for(const LeaseHolder& holder, const LeaseHolder& other);
/// Whether a process with that pid and start time is there: running or stopped, not one that has ended and only waits
/// to be noticed by its parent.
bool process_exists(std::int64_t pid, std::int64_t start_time);

/// Who has the run directory now, as far as can be told without writing there: by its process on this machine,
/// elsewhere by the age of the lease, with some seconds for clocks that differ. Nothing: nobody.
std::optional<LeaseHolder> holder_now(const std::filesystem::path& directory);

/// What LeaseHolder::directory says of a directory; "" when it cannot be told.
std::string identity_of(const std::filesystem::path& directory);
/// The part of such an identity that does not depend on the mount through which the directory is seen.
std::string inode_of(const std::string& identity);

/// "2026-11-25T10:00:00Z"
std::string utc_now();

}  // namespace emox
