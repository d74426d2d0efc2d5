// Dictionaries in dictd's format and texts in SWORD's.
#include <zlib.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <set>
#include <utility>

#include "data/corpus/extract.h"
#include "data/corpus/text.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

/// dictd writes numbers in base 64, most significant digit first.
std::size_t base64_number(std::string_view digits) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::size_t value = 0;
  for (const char c : digits) {
    const std::size_t digit = kDigits.find(c);
    require<IoError>(digit != std::string_view::npos, "dictionary index: '{}' is not a base-64 number", digits);
    value = value * 64 + digit;
  }
  return value;
}

/// "[1913 Webster]" and the like name the edition that a paragraph was taken from.
bool source_mark(std::string_view bracketed) {
  for (const std::string_view start : {"[1913 Webster", "[Webster", "[WordNet", "[PJC", "[RP", "[Century"}) {
    if (bracketed.starts_with(start)) return true;
  }
  return false;
}

std::string plain_entry(std::string_view entry) {
  std::string out;
  for (std::size_t i = 0; i < entry.size(); ++i) {
    const char c = entry[i];
    if (c == '{' || c == '}') continue;  // cross-references
    if (c == '[' && source_mark(entry.substr(i))) {
      const std::size_t end = entry.find(']', i);
      if (end != std::string_view::npos && end - i < 60) {
        i = end;
        continue;
      }
    }
    out += c;
  }
  return reflow(out);
}

std::string inflate_block(std::string_view packed, std::size_t size) {
  std::string text(size, '\0');
  uLongf length = size;
  const int result = uncompress(reinterpret_cast<Bytef*>(text.data()), &length,
                                reinterpret_cast<const Bytef*>(packed.data()), packed.size());
  require<IoError>(result == Z_OK && length == size,
                   "SWORD module: a block of {} bytes does not unpack to {} bytes (zlib error {})", packed.size(), size,
                   result);
  return text;
}

std::uint32_t word_at(std::string_view bytes, std::size_t at) {
  std::uint32_t value = 0;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

/// Text between tags, with the paragraphs of OSIS; notes are left out with all that is in them.
std::string plain_osis(std::string_view osis) {
  std::string out;
  int note = 0;
  for (std::size_t i = 0; i < osis.size();) {
    if (osis[i] != '<') {
      const std::size_t end = std::min(osis.find('<', i), osis.size());
      if (note == 0) out += osis.substr(i, end - i);
      i = end;
      continue;
    }
    const std::size_t end = std::min(osis.find('>', i), osis.size() - 1);
    const std::string_view tag = osis.substr(i, end + 1 - i);
    if (tag.starts_with("<note")) note += tag.ends_with("/>") ? 0 : 1;
    if (tag.starts_with("</note")) --note;
    const bool paragraph =
        (tag.starts_with("<div") && tag.find("sID") != std::string_view::npos) || tag.starts_with("</title");
    if (paragraph) out += "\n\n";
    if (tag.starts_with("<l ") || tag.starts_with("<lb")) out += ' ';
    i = end + 1;
  }
  return out;
}

}  // namespace

std::vector<std::string> extract_dictionary(std::string_view index, std::string_view text) {
  std::vector<std::string> entries;
  std::set<std::pair<std::size_t, std::size_t>> places;
  for (std::size_t i = 0; i < index.size();) {
    const std::size_t end = std::min(index.find('\n', i), index.size());
    const std::string_view line = index.substr(i, end - i);
    i = end + 1;
    const std::size_t first = line.find('\t');
    const std::size_t second = first == std::string_view::npos ? first : line.find('\t', first + 1);
    if (second == std::string_view::npos) continue;
    if (line.starts_with("00-database") || line.starts_with("00database")) continue;  // about the dictionary, not in it
    const std::size_t offset = base64_number(line.substr(first + 1, second - first - 1));
    const std::size_t length = base64_number(line.substr(second + 1));
    require<IoError>(offset <= text.size() && length <= text.size() - offset,
                     "dictionary index: entry '{}' at {} + {} lies beyond the text of {} bytes", line.substr(0, first),
                     offset, length, text.size());
    places.emplace(offset, length);
  }
  for (const auto& [offset, length] : places) entries.push_back(plain_entry(text.substr(offset, length)));
  return entries;
}

std::vector<std::string> extract_osis(std::string_view osis) {
  std::vector<std::string> chapters;
  for (std::size_t i = 0; i < osis.size();) {
    // The start tag of the next chapter; <chapter eID=...> ends one.
    std::size_t next = i + 1;
    do {
      next = std::min(osis.find("<chapter ", next + 1), osis.size());
    } while (next < osis.size() &&
             osis.substr(next, osis.find('>', next) - next).find("sID=") == std::string_view::npos);
    std::string text = plain_osis(osis.substr(i, next - i));
    for (std::size_t at = text.find("\u00B6"); at != std::string::npos; at = text.find("\u00B6", at)) text.erase(at, 2);
    chapters.push_back(reflow(text));
    i = next;
  }
  std::erase_if(chapters, [](const std::string& c) { return c.empty(); });
  return chapters;
}

std::vector<std::string> extract_sword(std::string_view blocks, std::string_view packed) {
  require<IoError>(blocks.size() % 12 == 0, "SWORD module: an index of {} bytes is no multiple of 12", blocks.size());
  std::vector<std::string> chapters;
  for (std::size_t i = 0; i < blocks.size(); i += 12) {
    const std::size_t offset = word_at(blocks, i);
    const std::size_t packed_size = word_at(blocks, i + 4);
    require<IoError>(offset <= packed.size() && packed_size <= packed.size() - offset,
                     "SWORD module: block {} at {} + {} lies beyond the {} bytes of its file", i / 12, offset,
                     packed_size, packed.size());
    const std::string osis = inflate_block(packed.substr(offset, packed_size), word_at(blocks, i + 8));
    for (std::string& chapter : extract_osis(osis)) chapters.push_back(std::move(chapter));
  }
  return chapters;
}

}  // namespace emox
