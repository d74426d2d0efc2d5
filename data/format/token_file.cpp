#include "data/format/token_file.h"

#include <cstring>

#include "runtime/core/error.h"

namespace emox {

TokenFile::TokenFile(const std::filesystem::path& path, std::int64_t vocab_size)
    : file_(path), vocab_size_(vocab_size) {
  require<UsageError>(vocab_size >= 1, "{}: vocab_size {} must be at least 1", path.string(), vocab_size);
  if (is_npy(file_.bytes())) {
    const NpyHeader header = parse_npy_header(file_.bytes(), path.string());
    type_ = header.type;
    count_ = header.count;
    offset_ = header.offset;
  } else {
    type_ = vocab_size <= 65536 ? NpyType::U2 : NpyType::U4;
    const std::size_t bytes = file_.bytes().size();
    require<UsageError>(bytes % size_of(type_) == 0,
                        "{}: {} bytes is no multiple of {}: truncated, or not a headerless {} token file "
                        "(the width follows from model.vocab_size = {})",
                        path.string(), bytes, size_of(type_), type_ == NpyType::U2 ? "uint16" : "uint32", vocab_size);
    count_ = static_cast<std::int64_t>(bytes / size_of(type_));
  }
  require<UsageError>(count_ > 0, "{}: the file holds no token", path.string());
}

template <typename T>
void TokenFile::copy(std::int64_t begin, std::int64_t count, std::int32_t* out) const {
  const std::byte* from = file_.bytes().data() + offset_ + static_cast<std::size_t>(begin) * sizeof(T);
  for (std::int64_t i = 0; i < count; ++i) {
    T raw;
    std::memcpy(&raw, from + static_cast<std::size_t>(i) * sizeof(T), sizeof(T));
    const auto id = static_cast<std::int64_t>(raw);
    require<IoError>(
        id >= 0 && id < vocab_size_,
        "{}: token id {} at position {} is not in [0, {}): the file was made with another tokenizer, or is "
        "damaged; check data.tokenizer and model.vocab_size",
        file_.path().string(), id, begin + i, vocab_size_);
    out[i] = static_cast<std::int32_t>(id);
  }
}

void TokenFile::read(std::int64_t begin, std::int64_t count, std::int32_t* out) const {
  require<ShapeError>(begin >= 0 && count >= 0 && begin <= count_ - count, "{}: tokens [{}, {}) of {} were asked for",
                      file_.path().string(), begin, begin + count, count_);
  switch (type_) {
    case NpyType::U2:
      return copy<std::uint16_t>(begin, count, out);
    case NpyType::U4:
      return copy<std::uint32_t>(begin, count, out);
    case NpyType::I4:
      return copy<std::int32_t>(begin, count, out);
    case NpyType::I8:
      return copy<std::int64_t>(begin, count, out);
  }
}

std::filesystem::path document_index_path(const std::filesystem::path& token_file) {
  std::filesystem::path index = token_file;
  return index.replace_extension(".docs.npy");
}

std::vector<std::int64_t> read_document_index(const std::filesystem::path& token_file, std::int64_t tokens) {
  const std::filesystem::path path = document_index_path(token_file);
  std::vector<std::int64_t> offsets = read_npy_integers(path);
  require<UsageError>(offsets.size() >= 2 && offsets.front() == 0 && offsets.back() == tokens,
                      "{}: {} offsets from {} to {} do not cover the {} tokens of {}; build both files again",
                      path.string(), offsets.size(), offsets.empty() ? 0 : offsets.front(),
                      offsets.empty() ? 0 : offsets.back(), tokens, token_file.string());
  for (std::size_t i = 1; i < offsets.size(); ++i) {
    require<UsageError>(offsets[i - 1] < offsets[i], "{}: offset {} is {}, not above the one before it ({})",
                        path.string(), i, offsets[i], offsets[i - 1]);
  }
  return offsets;
}

}  // namespace emox
