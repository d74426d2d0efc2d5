// Whether the bytes of a headerless file are the token ids that they are taken for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "data/format/token_file.h"

namespace emox {

/// Looks at stretches of a token file, and says when they are no ids of its width.
class TokenSample {
 public:
  TokenSample(const TokenLayout& layout, std::int64_t vocab_size) : layout_(layout), vocab_size_(vocab_size) {}

  /// Bytes of whole tokens from `at` on, counted from the first token.
  void add(std::int64_t at, std::span<const std::byte> bytes);
  /// Throws UsageError naming the file and what to do: ids of the other width (data.token_type), ids beyond the
  /// vocabulary. A file with a header says itself what it holds: nothing is thrown.
  void check(const std::filesystem::path& path, TokenWidth width, const std::string& label) const;

 private:
  TokenLayout layout_;
  std::int64_t vocab_size_;
  std::int64_t seen_ = 0;       ///< tokens
  std::int64_t zeros_[2] = {};  ///< at even and at odd positions
  std::int64_t beyond_ = 0;     ///< ids not below vocab_size
  std::int64_t first_beyond_ = -1, id_beyond_ = 0;
};

/// How errors about a file of the source begin; nothing for a file that is named by itself (no label).
std::string in_source(const std::string& label);

/// True if the bytes are text: valid UTF-8 (whose last character may be cut off) without control characters, or nearly
/// only printable ASCII.
bool looks_like_text(std::span<const std::byte> bytes);
/// True if the bytes begin as a gzip, zstd, xz, bzip2 or zip file does.
bool looks_compressed(std::span<const std::byte> bytes);

}  // namespace emox
