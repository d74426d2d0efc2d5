// Files that are either whole and on the disk, or not there: written beside their place, synced, renamed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
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

/// Writes `path` under another name; commit() puts it in place. Destroyed without commit() it leaves nothing behind.
/// Every failure is an IoError that names the file and the system's reason.
class DurableFile {
 public:
  explicit DurableFile(std::filesystem::path path);
  ~DurableFile();
  DurableFile(const DurableFile&) = delete;
  DurableFile& operator=(const DurableFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }
  /// Syncs, renames into place (replacing what was there), and syncs the directory.
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int fd_ = -1;
};

/// fsync of a file, or of a directory (its list of names).
void sync_to_disk(const std::filesystem::path& path);
/// Lets the system begin to write what it holds of the file, where it can; nothing is promised.
void start_writing_to_disk(const std::filesystem::path& path);

/// What becomes of a directory that has the name already when a new one is to get it.
enum class Existing : std::uint8_t {
  Remove,    ///< it goes when the new one stays
  MoveAside  ///< it stays, under a name that says when it was moved
};

/// `path`.aside-20261130T101500Z, which is not there yet: for what is moved out of the way now and never removed.
std::filesystem::path name_aside(const std::filesystem::path& path);

/// A directory that has got its name, by rename(2), and may still lose it.
class PlacedDirectory {
 public:
  /// Renames `from` to `to` and syncs their parent. Where `to` is there and is to go, the two swap places, at once
  /// where the file system can do so; where it is to stay, it is moved aside before. IoError: both are where they were.
  PlacedDirectory(std::filesystem::path from, std::filesystem::path to, Existing existing);
  /// Unless kept, both go back; where the disk does not even allow that, `to` is removed.
  ~PlacedDirectory();
  PlacedDirectory(const PlacedDirectory&) = delete;
  PlacedDirectory& operator=(const PlacedDirectory&) = delete;
  /// It stays, and what was there before is removed if it is to go. Returns where it lies if it stays; else "".
  std::filesystem::path keep();

 private:
  void place();
  void take_back();
  const std::filesystem::path from_, to_;
  const Existing existing_;
  std::filesystem::path old_;  ///< where that lies which was there before; empty: nothing was
  bool kept_ = false;
};

/// As mkdir -p, synced; it may be there already, or come to be meanwhile.
void make_directories(const std::filesystem::path& path);
/// Makes the symbolic link `link` lead to `target`, or lead there from now on, at once, and syncs its directory. What
/// has that name and is no link becomes `link`.replaced. IoError: it leads where it did, or, where the disk does not
/// allow that, is gone.
void replace_link(const std::filesystem::path& target, const std::filesystem::path& link);
/// In bytes. Fails as fail_to_read (file_error.h).
std::int64_t bytes_of_file(const std::filesystem::path& path);
/// The whole file as text. Fails as fail_to_read (file_error.h).
std::string read_text_file(const std::filesystem::path& path);

}  // namespace emox
