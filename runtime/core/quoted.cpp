#include "runtime/core/quoted.h"

#include <fmt/format.h>

#include "runtime/core/error.h"

namespace emox {
namespace {

unsigned byte_at(std::string_view text, std::size_t i) { return static_cast<unsigned char>(text[i]); }

/// Bytes of the valid character that begins at i; 0 if there is none.
std::size_t character_at(std::string_view text, std::size_t i) {
  const unsigned first = byte_at(text, i);
  if (first < 0x80) return 1;
  const std::size_t length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || i + length > text.size()) return 0;
  for (std::size_t k = 1; k < length; ++k)
    if ((byte_at(text, i + k) & 0xC0U) != 0x80) return 0;
  const unsigned second = byte_at(text, i + 1);
  // Overlong forms, surrogates, beyond U+10FFFF.
  if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) || (first == 0xF0 && second < 0x90) ||
      (first == 0xF4 && second > 0x8F))
    return 0;
  return length;
}

bool is_plain(unsigned c) { return c >= 0x20 && c != 0x7F && c != '#'; }
bool is_blank(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

bool is_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = character_at(text, i);
    if (length == 0) return false;
    i += length;
  }
  return true;
}

std::string quoted_text(std::string_view text) {
  bool plain = text.empty() || (text.front() != '"' && !is_blank(text.front()) && !is_blank(text.back()));
  std::string out = "\"";
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = character_at(text, i);
    const unsigned c = byte_at(text, i);
    if (length == 0 || !is_plain(c)) {
      plain = false;
      out += fmt::format("\\x{:02x}", c);
    } else {
      if (c == '"' || c == '\\') out += '\\';
      out += text.substr(i, length);
    }
    i += length == 0 ? 1 : length;
  }
  return plain ? std::string(text) : out + '"';
}

std::string unquoted_text(std::string_view text) {
  if (text.empty() || text.front() != '"') return std::string(text);
  std::string out;
  for (std::size_t i = 1; i < text.size(); ++i) {
    if (text[i] == '"' && i + 1 == text.size()) return out;
    if (text[i] != '\\') {
      if (text[i] == '"') break;
      out += text[i];
      continue;
    }
    const char next = i + 1 < text.size() ? text[i + 1] : '\0';
    if (next == '"' || next == '\\') {
      out += next;
      i += 1;
    } else if (next == 'x' && i + 3 < text.size() && hex_digit(text[i + 2]) >= 0 && hex_digit(text[i + 3]) >= 0) {
      out += static_cast<char>(hex_digit(text[i + 2]) * 16 + hex_digit(text[i + 3]));
      i += 3;
    } else {
      break;
    }
  }
  fail<UsageError>(
      "{} begins with a double quote but is not quoted text: end it with one, and write \\\", \\\\ and "
      "\\xNN inside",
      text);
}

}  // namespace emox
