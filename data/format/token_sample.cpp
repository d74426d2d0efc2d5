#include "data/format/token_sample.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/core/quoted.h"

namespace emox {
namespace {

// Fewer tokens than this say nothing about a file.
constexpr std::int64_t kFewest = 32;

}  // namespace

std::string in_source(const std::string& label) { return label.empty() ? "" : fmt::format("data.source {}: ", label); }

bool looks_compressed(std::span<const std::byte> bytes) {
  using namespace std::string_view_literals;
  constexpr std::array kBegins = {"\x1F\x8B\x08"sv, "\x28\xB5\x2F\xFD"sv, "\xFD\x37zXZ\0"sv, "BZh"sv, "PK\x03\x04"sv};
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return std::any_of(kBegins.begin(), kBegins.end(), [&](std::string_view begin) { return text.starts_with(begin); });
}

bool looks_like_text(std::span<const std::byte> bytes) {
  std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (text.size() < kFewest) return false;
  std::size_t printable = 0;
  for (const char c : text) {
    const auto u = static_cast<unsigned char>(c);
    if (u < 0x20 && c != '\t' && c != '\n' && c != '\r' && c != '\f' && c != '\x1B') return false;
    printable += u < 0x7F ? 1 : 0;
  }
  if (printable * 10 >= text.size() * 9) return true;
  for (std::size_t cut = 0; cut < 4; ++cut)
    if (is_utf8(text.substr(0, text.size() - cut))) return true;
  return false;
}

void TokenSample::add(std::int64_t at, std::span<const std::byte> bytes) {
  if (layout_.header) return;
  const auto item = static_cast<std::int64_t>(size_of(layout_.type));
  std::int64_t position = at / item;
  for (std::size_t i = 0; i + idx(item) <= bytes.size(); i += idx(item)) {
    std::uint32_t id = 0;
    std::memcpy(&id, bytes.data() + i, idx(item));
    zeros_[position & 1] += id == 0 ? 1 : 0;
    if (static_cast<std::int64_t>(id) >= vocab_size_ && ++beyond_ == 1) first_beyond_ = position, id_beyond_ = id;
    ++position;
    ++seen_;
  }
}

void TokenSample::check(const std::filesystem::path& path, TokenWidth width, const std::string& label) const {
  if (layout_.header) return;
  const bool wide = layout_.type == NpyType::U4;
  const std::string read_as = fmt::format("{} ({})", wide ? "uint32" : "uint16",
                                          width == TokenWidth::Auto ? "by model.vocab_size" : "by data.token_type");
  const std::int64_t half = std::max<std::int64_t>(seen_ / 2, 1);
  require<UsageError>(wide || seen_ < kFewest || zeros_[1] * 10 < half * 9 || zeros_[0] * 10 > half * 6,
                      "{}{} was read as {}, but every second of its numbers is 0: its ids are 32 bits "
                      "wide; set data.token_type = uint32",
                      in_source(label), path.string(), read_as);
  require<UsageError>(beyond_ == 0,
                      "{}{} was read as {}, but {} of {} ids looked at are not below model.vocab_size = "
                      "{} (the first is {}, at position {}): {}, or the file was made with another tokenizer, or is "
                      "damaged",
                      in_source(label), path.string(), read_as, beyond_, seen_, vocab_size_, id_beyond_, first_beyond_,
                      wide ? "if its ids are 16 bits wide, set data.token_type = uint16"
                           : "if its ids are 32 bits wide, set data.token_type = uint32");
}

}  // namespace emox
