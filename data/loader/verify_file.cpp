#include "data/loader/verify_file.h"

#include <fmt/format.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>

#include "data/format/fingerprint.h"
#include "runtime/core/error.h"
#include "runtime/files/atomic_file.h"
#include "runtime/files/file_error.h"
#include "runtime/files/files.h"

namespace emox {
namespace {

using nlohmann::json;

// Ids that cannot be: how many, and where the first one stands.
class IdCheck {
 public:
  IdCheck(NpyType type, std::int64_t vocab_size) : type_(type), vocab_size_(vocab_size) {}
  /// `bytes` stand at byte `at` of the elements.
  void add(std::int64_t at, std::span<const std::byte> bytes) {
    ids_.resize(bytes.size() / size_of(type_));
    widen(bytes, type_, ids_.data());
    const std::int64_t first = at / static_cast<std::int64_t>(size_of(type_));
    for (std::size_t i = 0; i < ids_.size(); ++i) {
      if (ids_[i] >= 0 && (vocab_size_ == 0 || ids_[i] < vocab_size_)) continue;
      if (wrong_++ == 0) first_id_ = ids_[i], first_at_ = first + static_cast<std::int64_t>(i);
    }
  }
  std::optional<std::string> problem() const {
    if (wrong_ == 0) return std::nullopt;
    return fmt::format("{} id(s) are not in the vocabulary of {}: the first is {} at position {}", wrong_, vocab_size_,
                       first_id_, first_at_);
  }

 private:
  NpyType type_;
  std::int64_t vocab_size_;
  std::vector<std::int64_t> ids_;  ///< of one piece
  std::int64_t wrong_ = 0, first_id_ = 0, first_at_ = 0;
};

// Any id will do where the vocabulary is not known: the width of a headerless file is then stated, or 16 bits.
std::int64_t vocabulary_of(std::int64_t vocab_size, TokenWidth width) {
  if (vocab_size > 0) return vocab_size;
  return width == TokenWidth::Uint32 ? std::int64_t{1} << 32 : 65536;
}

}  // namespace

VerifiedFile verify_file(const std::filesystem::path& path, std::int64_t vocab_size, TokenWidth width,
                         const ReadObserver& observer) {
  VerifiedFile verified;
  verified.identity = identify_file(path, "", vocabulary_of(vocab_size, width), width);
  const TokenLayout& layout = verified.identity.layout;
  const StoredFile file(path, layout.bytes);
  IdCheck ids(layout.type, vocab_size);
  verified.whole = whole_fingerprint_of(file, layout.offset, [&](std::int64_t at, auto bytes) {
    ids.add(at, bytes);
    if (observer) observer(static_cast<std::int64_t>(bytes.size()));
  });
  if (auto problem = ids.problem()) verified.problems.push_back(std::move(*problem));
  if (verified.identity.documents < 0) return verified;
  try {
    (void)read_document_index(path, layout.tokens);
  } catch (const UsageError& e) {
    verified.problems.push_back(e.message());
  }
  return verified;
}

std::filesystem::path record_path(const std::filesystem::path& token_file) {
  return token_file.string() + ".identity.json";
}

bool has_record(const std::filesystem::path& token_file) {
  std::error_code ignored;
  return std::filesystem::exists(record_path(token_file), ignored);
}

void write_record(const std::filesystem::path& token_file, const VerifiedFile& verified) {
  FileIdentity identity = verified.identity;
  identity.path = token_file.filename().string();
  json record = to_json(identity);
  record["format"] = "emox-token-file-1";
  record["whole"] = verified.whole;
  write_file_atomically(record_path(token_file), record.dump(1) + "\n");
}

std::optional<std::string> record_difference(const std::filesystem::path& token_file, const VerifiedFile& verified) {
  if (!has_record(token_file)) return std::nullopt;
  const std::string name = record_path(token_file).string();
  const auto [text, error] = try_read_text(name);
  require<UsageError>(error == 0, "{}, the record of a token file, cannot be read: {}", name, system_reason(error));
  const json record = json::parse(text, nullptr, false);
  require<UsageError>(record.is_object() && record.value("format", json()) == "emox-token-file-1" &&
                          record.value("whole", json()).is_string(),
                      "{} is not the record of a token file: remove it, or record the file again with --record", name);
  FileIdentity before;
  try {
    before = file_identity_from(record);
  } catch (const IoError& e) {
    fail<UsageError>("{}: {}; record the file again with --record", name, e.message());
  }
  const std::string of_record = fmt::format(" (recorded in {})", name);
  if (const auto difference = file_difference(before, verified.identity)) return *difference + of_record;
  if (record.at("whole") != verified.whole)
    return fmt::format("has other tokens: checksum {}, not {}{}", verified.whole, record.at("whole").get<std::string>(),
                       of_record);
  return std::nullopt;
}

}  // namespace emox
