// A flat stream of token ids on disk, and where its documents begin.
//
// Two forms are read, told apart by the first bytes: a NumPy .npy file, and the headerless form of OLMo and dolma
// (whose files are often named .npy too), little-endian uint16 if the vocabulary has at most 65,536 ids, uint32 beyond.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "data/format/mapped_file.h"
#include "data/format/npy.h"

namespace emox {

class TokenFile {
 public:
  /// Maps the file. `vocab_size` decides the width of the headerless form and which ids are valid.
  /// Throws UsageError if the file is missing, empty, truncated, holds no token or another element type.
  TokenFile(const std::filesystem::path& path, std::int64_t vocab_size);

  /// Tokens in the file.
  std::int64_t size() const { return count_; }
  /// Copies tokens [begin, begin + count) to `out`. Throws IoError naming file, position and id if an id is negative or
  /// not below vocab_size.
  void read(std::int64_t begin, std::int64_t count, std::int32_t* out) const;
  const std::filesystem::path& path() const { return file_.path(); }

 private:
  template <typename T>
  void copy(std::int64_t begin, std::int64_t count, std::int32_t* out) const;

  MappedFile file_;
  std::int64_t vocab_size_;
  NpyType type_ = NpyType::U2;
  std::int64_t count_ = 0;
  std::size_t offset_ = 0;
};

/// `train.npy` -> `train.docs.npy`: int64 offsets [documents + 1]; document i is tokens [offset[i], offset[i + 1]).
std::filesystem::path document_index_path(const std::filesystem::path& token_file);

/// Reads the index of a token file with `tokens` tokens. Throws UsageError if it is missing or damaged, or if it does
/// not rise from 0 to `tokens` without an empty document.
std::vector<std::int64_t> read_document_index(const std::filesystem::path& token_file, std::int64_t tokens);

}  // namespace emox
