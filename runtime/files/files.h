// What the standard library does not do with files: to the disk, out of the way, whole texts with the reason why not.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace emox {

/// A descriptor that closes itself.
class FileDescriptor {
 public:
  /// `flags` as of open(2), for a file that exists. IoError when it cannot be opened; to be read, as fail_to_read.
  FileDescriptor(const std::filesystem::path& path, int flags);
  ~FileDescriptor();
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

/// The whole file as text. Fails as fail_to_read (file_error.h), also for what is neither a file nor a directory.
std::string read_text(const std::filesystem::path& path);
/// The same of anything that can be read, pipes too, for who says in other words what is wrong. `error` is errno, 0
/// for none.
struct TextOrError {
  std::string text;
  int error = 0;
};
TextOrError try_read_text(const std::filesystem::path& path);

/// In bytes. Fails as fail_to_read (file_error.h).
std::int64_t bytes_of_file(const std::filesystem::path& path);

/// The directory that the name is in, "." for a name alone.
std::filesystem::path parent_of(const std::filesystem::path& path);
/// Also of a link that leads nowhere. IoError when the file system does not say.
bool name_is_taken(const std::filesystem::path& path);
/// As mkdir -p, synced; it may be there already, or come to be meanwhile.
void make_directories(const std::filesystem::path& path);
/// rename(2), or an IoError that names both.
void rename_path(const std::filesystem::path& from, const std::filesystem::path& to);

/// fsync of a file, or of a directory (its list of names).
void sync_to_disk(const std::filesystem::path& path);
/// Lets the system begin to write what it holds of the file, where it can; nothing is promised.
void start_writing_to_disk(const std::filesystem::path& path);

/// PATH.until-20261130T101500Z, or another word: a name that is not taken, for what lay at PATH until now and is never
/// removed.
std::filesystem::path name_aside(const std::filesystem::path& path, std::string_view word = "until");
/// Gives what is at PATH such a name, and returns it. IoError.
std::filesystem::path move_aside(const std::filesystem::path& path);

}  // namespace emox
