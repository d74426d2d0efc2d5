#include "data/corpus/text.h"

#include <algorithm>
#include <string>

namespace emox {
namespace {

bool blank(char c) { return c == ' ' || c == '\t' || c == '\n' || c == kBreak; }

std::string_view strip(std::string_view text) {
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  // Leading blanks of the first line are indentation: only whole empty lines go.
  std::size_t start = 0;
  for (std::size_t i = 0; i < text.size() && blank(text[i]); ++i) {
    if (text[i] == '\n' || text[i] == kBreak) start = i + 1;
  }
  return text.substr(start);
}

/// Bytes of the valid UTF-8 character at i, or 0.
std::size_t character(std::string_view text, std::size_t i) {
  const auto byte = [&](std::size_t k) { return static_cast<unsigned>(static_cast<unsigned char>(text[k])); };
  const unsigned first = byte(i);
  if (first < 0x80) return 1;
  const std::size_t length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || i + length > text.size()) return 0;
  unsigned code = first & (0xFFu >> (length + 1));
  for (std::size_t k = 1; k < length; ++k) {
    if ((byte(i + k) & 0xC0) != 0x80) return 0;
    code = (code << 6) | (byte(i + k) & 0x3F);
  }
  const bool overlong = (length == 3 && code < 0x800) || (length == 4 && code < 0x10000);
  return overlong || (code >= 0xD800 && code < 0xE000) || code > 0x10FFFF ? 0 : length;
}

/// Valid characters only, and the few replacements that clean_text promises.
std::string valid_text(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = character(text, i);
    const std::string_view c = text.substr(i, std::max<std::size_t>(length, 1));
    i += c.size();
    const bool control = length == 1 && (static_cast<unsigned char>(c[0]) < 0x20 || c[0] == 0x7F);
    if (length == 0 || (control && c[0] != '\n' && c[0] != '\t' && c[0] != kBreak)) continue;
    // Byte order mark, zero-width space, soft hyphen, C1 control characters.
    if (c == "\xEF\xBB\xBF" || c == "\xE2\x80\x8B" || c == "\xC2\xAD" ||
        (c[0] == '\xC2' && c < std::string_view("\xC2\xA0")))
      continue;
    if (c == "\xC2\xA0")
      out += ' ';
    else
      out += c;
  }
  return out;
}

/// Paragraphs, each with a note whether a break stands before it.
struct Paragraph {
  std::string_view text;
  bool after_break;
};

std::vector<Paragraph> paragraphs_of(std::string_view text) {
  std::vector<Paragraph> paragraphs;
  bool after_break = false;
  std::size_t mark = text.find(kBreak);
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t gap = text.find("\n\n", i);
    if (mark < i) mark = text.find(kBreak, i);  // searched once a break, not once a paragraph
    const std::size_t end = std::min({gap, mark, text.size()});
    const std::string_view part = strip(text.substr(i, end - i));
    if (!part.empty()) {
      paragraphs.push_back({part, after_break});
      after_break = false;
    }
    after_break = after_break || end == mark;
    i = end == text.size() ? end : end + (end == mark ? 1 : 2);
  }
  return paragraphs;
}

}  // namespace

std::size_t cut_before(std::string_view text, std::size_t limit) {
  const std::size_t lower = limit / 2;
  for (const std::string_view mark : {"\n\n", "\n", ". ", " "}) {
    const std::size_t at = text.rfind(mark, limit - mark.size());
    if (at != std::string_view::npos && at >= lower) return at + mark.size();
  }
  // A character has at most three bytes after its first; where more follow, this is no text.
  std::size_t cut = limit;
  while (cut > 1 && limit - cut < 3 && (static_cast<unsigned char>(text[cut]) & 0xC0) == 0x80) --cut;
  return cut;
}

std::string clean_text(std::string_view raw) {
  const std::string text = valid_text(raw);
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    if (c == '\n') {
      while (!out.empty() && (out.back() == ' ' || out.back() == '\t')) out.pop_back();
      if (out.empty() || out.ends_with("\n\n")) continue;
    }
    out += c;
  }
  return std::string(strip(out));
}

std::string reflow(std::string_view text) {
  std::string out;
  int newlines = 0;
  bool gap = false;
  for (const char c : text) {
    if (blank(c)) {
      newlines += c == '\n';
      gap = true;
      continue;
    }
    if (gap && !out.empty()) out += newlines > 1 ? "\n\n" : " ";
    gap = false;
    newlines = 0;
    out += c;
  }
  return out;
}

std::vector<std::string> split_text(std::string_view text) {
  std::vector<std::string> pieces;
  std::string piece;
  const auto flush = [&] {
    if (piece.empty()) return;
    const bool rest = piece.size() < kShortDocumentBytes && !pieces.empty();
    if (rest && pieces.back().size() + 2 + piece.size() <= kMaxDocumentBytes)
      pieces.back() += "\n\n" + piece;
    else
      pieces.push_back(piece);
    piece.clear();
  };
  for (const Paragraph& paragraph : paragraphs_of(text)) {
    std::string_view rest = paragraph.text;
    if (paragraph.after_break && piece.size() >= kSplitBytes) flush();
    if (!piece.empty() && piece.size() + 2 + rest.size() > kMaxDocumentBytes) flush();
    while (rest.size() > kMaxDocumentBytes) {
      const std::size_t cut = cut_before(rest, kMaxDocumentBytes);
      piece = strip(rest.substr(0, cut));
      flush();
      rest = strip(rest.substr(cut));
    }
    if (rest.empty()) continue;
    if (!piece.empty()) piece += "\n\n";
    piece += rest;
  }
  flush();
  return pieces;
}

std::string printable(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = character(text, i);
    const auto first = static_cast<unsigned char>(text[i]);
    if (length == 0 || first < 0x20 || first == 0x7F || first == '\\') {
      constexpr std::string_view kDigits = "0123456789ABCDEF";
      out += {'\\', 'x', kDigits[first >> 4], kDigits[first & 15]};
      ++i;
      continue;
    }
    out += text.substr(i, length);
    i += length;
  }
  return out;
}

bool join_short(std::string& before, std::string_view piece) {
  if (before.size() >= kShortDocumentBytes || before.size() + 2 + piece.size() > kMaxDocumentBytes) return false;
  before += "\n\n";
  before += piece;
  return true;
}

}  // namespace emox
