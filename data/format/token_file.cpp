#include "data/format/token_file.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

template <typename T>
void convert(std::span<const std::byte> from, std::int64_t first, const StoredFile& file, std::int64_t vocab_size,
             std::int32_t* out) {
  for (std::size_t i = 0; i < from.size() / sizeof(T); ++i) {
    T raw;
    std::memcpy(&raw, from.data() + i * sizeof(T), sizeof(T));
    const auto id = static_cast<std::int64_t>(raw);
    require<IoError>(
        id >= 0 && id < vocab_size,
        "{}: token id {} at position {} is not in [0, {}): the file was made with another tokenizer, or is "
        "damaged; check data.tokenizer and model.vocab_size",
        file.path().string(), id, first + static_cast<std::int64_t>(i), vocab_size);
    out[i] = static_cast<std::int32_t>(id);
  }
}

void convert(NpyType type, std::span<const std::byte> from, std::int64_t first, const StoredFile& file,
             std::int64_t vocab_size, std::int32_t* out) {
  switch (type) {
    case NpyType::U2:
      return convert<std::uint16_t>(from, first, file, vocab_size, out);
    case NpyType::U4:
      return convert<std::uint32_t>(from, first, file, vocab_size, out);
    case NpyType::I4:
      return convert<std::int32_t>(from, first, file, vocab_size, out);
    case NpyType::I8:
      return convert<std::int64_t>(from, first, file, vocab_size, out);
  }
}

}  // namespace

TokenLayout token_layout(const StoredFile& file, std::int64_t vocab_size, TokenWidth width) {
  const std::string name = file.path().string();
  require<UsageError>(vocab_size >= 1, "{}: vocab_size {} must be at least 1", name, vocab_size);
  TokenLayout layout;
  layout.bytes = file.bytes();
  if (const auto header = read_npy_header(file)) {
    layout.header = true;
    layout.type = header->type;
    layout.tokens = header->count;
    layout.offset = static_cast<std::int64_t>(header->offset);
  } else {
    const bool wide = width == TokenWidth::Auto ? vocab_size > 65536 : width == TokenWidth::Uint32;
    layout.type = wide ? NpyType::U4 : NpyType::U2;
    const auto item = static_cast<std::int64_t>(size_of(layout.type));
    require<UsageError>(
        layout.bytes % item == 0,
        "{}: {} bytes is no multiple of {}: truncated, or not a headerless {} token file ({})", name, layout.bytes,
        item, wide ? "uint32" : "uint16",
        width == TokenWidth::Auto
            ? fmt::format("the width follows from model.vocab_size = {}; data.token_type states another", vocab_size)
            : "the width is what data.token_type says");
    layout.tokens = layout.bytes / item;
  }
  require<UsageError>(layout.tokens > 0, "{}: the file holds no token", name);
  return layout;
}

TokenFile::TokenFile(const std::filesystem::path& path, std::int64_t vocab_size, TokenWidth width)
    : file_(path), vocab_size_(vocab_size), layout_(token_layout(file_, vocab_size, width)) {}

TokenFile::TokenFile(const std::filesystem::path& path, const TokenLayout& layout, std::int64_t vocab_size)
    : file_(path, layout.bytes), vocab_size_(vocab_size), layout_(layout) {}

void TokenFile::read(std::int64_t begin, std::int64_t count, std::int32_t* out) const {
  require<ShapeError>(begin >= 0 && count >= 0 && begin <= size() - count, "{}: tokens [{}, {}) of {} were asked for",
                      path().string(), begin, begin + count, size());
  constexpr std::int64_t kPiece = 1 << 18;  // tokens
  const auto item = static_cast<std::int64_t>(size_of(layout_.type));
  std::vector<std::byte> raw(idx(std::min(count, kPiece) * item));
  for (std::int64_t done = 0; done < count;) {
    const std::int64_t n = std::min(count - done, kPiece);
    const std::span<std::byte> piece(raw.data(), idx(n * item));
    file_.read(layout_.offset + (begin + done) * item, piece);
    convert(layout_.type, piece, begin + done, file_, vocab_size_, out + done);
    done += n;
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
