// A whole file as read-only memory.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

namespace emox {

/// Maps a regular file. Pages are read when they are touched, so a file larger than the memory is fine.
class MappedFile {
 public:
  /// Throws UsageError if the file is missing, not a regular file, unreadable or empty.
  explicit MappedFile(const std::filesystem::path& path);
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace emox
