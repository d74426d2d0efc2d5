// Files that are either whole and on the disk, or not there: written beside their place, synced, renamed.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace emox {

/// PATH.tmp, for somebody who writes a file by its name; commit() gives it the name PATH. Destroyed without that, it
/// leaves nothing behind.
class TemporaryPath {
 public:
  explicit TemporaryPath(std::filesystem::path path);
  ~TemporaryPath();
  TemporaryPath(const TemporaryPath&) = delete;
  TemporaryPath& operator=(const TemporaryPath&) = delete;

  const std::filesystem::path& get() const { return temporary_; }
  /// Renames the file, whose content is on the disk by then, into place (replacing what was there), and syncs the
  /// directory. IoError.
  void commit();

 private:
  std::filesystem::path path_, temporary_;
  bool in_place_ = false;
};

/// Writes `path` under another name; commit() puts it in place: a reader sees the old content, or none, or all of the
/// new. Destroyed without commit() it leaves nothing behind. Every failure is an IoError that names the file and the
/// system's reason.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  /// Small parts are collected and written together.
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }
  /// Syncs, renames into place, and syncs the directory.
  void commit();

 private:
  void write_out(std::span<const std::byte> bytes);
  void flush();
  std::filesystem::path path_;
  int fd_;
  TemporaryPath temporary_;  // what cannot be created is not removed either
  std::string collected_;
};

/// The parts one after another, as an AtomicFile.
void write_file_atomically(const std::filesystem::path& path, std::span<const std::span<const std::byte>> parts);
void write_file_atomically(const std::filesystem::path& path, std::string_view text);

}  // namespace emox
