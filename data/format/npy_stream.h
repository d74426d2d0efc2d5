// An .npy file that is written piece by piece, for arrays that no memory holds.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <vector>

#include "data/format/npy.h"

namespace emox {

/// Writes a version 1.0 file of T = uint16 or int64. Not a .npy file before finish(): for directories that get their
/// name when all of them are done.
template <typename T>
class NpyStream {
 public:
  /// Throws IoError, as do the others.
  explicit NpyStream(const std::filesystem::path& path);
  void append(T value) {
    buffer_.push_back(value);
    if (buffer_.size() == kBuffered) flush();
  }
  std::int64_t count() const { return written_ + static_cast<std::int64_t>(buffer_.size()); }
  /// Writes the header and flushes the file to the disk.
  void finish();

 private:
  static constexpr std::size_t kBuffered = std::size_t{1} << 16;
  void flush();
  void write(const void* bytes, std::size_t count);

  std::filesystem::path path_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
  std::vector<T> buffer_;
  std::int64_t written_ = 0;
};

extern template class NpyStream<std::uint16_t>;
extern template class NpyStream<std::int64_t>;

}  // namespace emox
