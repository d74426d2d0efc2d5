// A flat stream of token ids on disk, and where its documents begin.
//
// Two forms are read, told apart by the first bytes: a NumPy .npy file, and the headerless form of OLMo and dolma
// (whose files are often named .npy too), little-endian uint16 or uint32.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

#include "data/format/npy.h"
#include "data/format/stored_file.h"

namespace emox {

/// Of the ids in a file without a header. Auto: uint16 if the vocabulary has at most 65,536 ids, uint32 beyond.
enum class TokenWidth : std::uint8_t { Auto, Uint16, Uint32 };

/// What is known of a token file once its header has been looked at.
struct TokenLayout {
  std::int64_t bytes = 0;  ///< of the file
  bool header = false;
  NpyType type = NpyType::U2;
  std::int64_t offset = 0;  ///< where the first token begins, in bytes
  std::int64_t tokens = 0;
};

/// Looks at an open file. Throws UsageError if it is truncated, holds no token or another element type.
TokenLayout token_layout(const StoredFile& file, std::int64_t vocab_size, TokenWidth width);

class TokenFile {
 public:
  /// Looks at the file; `vocab_size` says which ids are valid. Throws UsageError if the file is missing, empty,
  /// truncated, holds no token or another element type.
  TokenFile(const std::filesystem::path& path, std::int64_t vocab_size, TokenWidth width = TokenWidth::Auto);
  /// One that has been looked at, here or on another rank: it is opened when it is first read.
  TokenFile(const std::filesystem::path& path, const TokenLayout& layout, std::int64_t vocab_size);

  /// Tokens in the file.
  std::int64_t size() const { return layout_.tokens; }
  const TokenLayout& layout() const { return layout_; }
  /// Copies tokens [begin, begin + count) to `out`. Throws IoError naming file, position and id if an id is negative or
  /// not below vocab_size; IoError if the file has been cut since.
  void read(std::int64_t begin, std::int64_t count, std::int32_t* out) const;
  const std::filesystem::path& path() const { return file_.path(); }

 private:
  StoredFile file_;
  std::int64_t vocab_size_;
  TokenLayout layout_;
};

/// `train.npy` -> `train.docs.npy`: int64 offsets [documents + 1]; document i is tokens [offset[i], offset[i + 1]).
std::filesystem::path document_index_path(const std::filesystem::path& token_file);

/// Reads the index of a token file with `tokens` tokens. Throws UsageError if it is missing or damaged, or if it does
/// not rise from 0 to `tokens` without an empty document.
std::vector<std::int64_t> read_document_index(const std::filesystem::path& token_file, std::int64_t tokens);

}  // namespace emox
