// Pieces of a file that others may change while it is read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>

namespace emox {

/// A regular file, read piece by piece. A memory map would end the process without a word when the file is cut; this
/// says so. Few files are open at a time, however many objects there are.
class StoredFile {
 public:
  /// Throws UsageError if the file is missing, not a regular file, unreadable or empty.
  explicit StoredFile(std::filesystem::path path);
  /// One whose size is known already: it is opened when it is first read, and is from then on what it was there.
  StoredFile(std::filesystem::path path, std::int64_t bytes);
  StoredFile(StoredFile&& other) noexcept;
  StoredFile(const StoredFile&) = delete;
  StoredFile& operator=(const StoredFile&) = delete;
  ~StoredFile();

  const std::filesystem::path& path() const { return path_; }
  /// When this object was made.
  std::int64_t bytes() const { return bytes_; }
  /// Fills `out` with the bytes from `at` on. Several threads may read at once. IoError naming the file when it cannot
  /// be read, is no longer as long as it was, or is another one or was written to when it is opened again.
  void read(std::int64_t at, std::span<std::byte> out) const;

 private:
  std::filesystem::path path_;
  std::int64_t bytes_ = 0;
  std::uint64_t number_ = 0;  ///< of this object among those whose descriptors are kept
  struct Seen;
  std::unique_ptr<Seen> seen_;  ///< what the file was when it was first opened
};

}  // namespace emox
