#include <algorithm>
#include <cctype>

#include "data/corpus/extract.h"
#include "data/corpus/text.h"

namespace emox {
namespace {

std::vector<std::string_view> lines_of(std::string_view text) {
  std::vector<std::string_view> lines;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t end = std::min(text.find('\n', i), text.size());
    lines.push_back(text.substr(i, end - i));
    i = end + 1;
  }
  return lines;
}

/// Words of licence banners and of lines that say whose the file is.
bool about_rights(std::string_view line) {
  std::string lower(line);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  const auto has = [&](std::string_view word) { return lower.find(word) != std::string::npos; };
  return has("copyright") || has("licence") || has("license") || has("spdx") || has("all rights reserved") ||
         has("warranty of") || has("-*-");
}

bool starts_with_any(std::string_view line, std::initializer_list<std::string_view> starts) {
  return std::any_of(starts.begin(), starts.end(), [&](std::string_view s) { return line.starts_with(s); });
}

/// A comment that only draws a line.
bool ruler(std::string_view line) {
  return line.starts_with("(*") && line.find_first_not_of("(*-= )") == std::string_view::npos;
}

/// Drops every run of comment lines at the left margin that mentions rights: the banner goes as a whole, other comments
/// stay. `comment(lines, i)` is the number of lines of the comment at i, 0 if there is none. Then marks definitions.
template <typename Comment, typename Definition>
std::string extract_code(std::string_view code, Comment comment, Definition definition) {
  const std::vector<std::string_view> lines = lines_of(code);
  std::string out;
  bool after_blank = true;
  for (std::size_t i = 0; i < lines.size();) {
    std::size_t end = i;
    bool rights = false;
    while (end < lines.size()) {
      const std::size_t n = comment(lines, end);
      if (n == 0) break;
      for (std::size_t k = 0; k < n; ++k) rights = rights || about_rights(lines[end + k]);
      end += n;
    }
    if (rights) {
      i = end;
      continue;
    }
    // The comment before a definition belongs to it, so the mark goes before the comment.
    if (after_blank && (end > i || definition(lines[i]))) out += kBreak;
    for (end = std::max(end, i + 1); i < end; ++i) {
      if (ruler(lines[i])) continue;
      out += lines[i];
      out += '\n';
    }
    after_blank = lines[end - 1].empty();
  }
  return out;
}

}  // namespace

std::string extract_python(std::string_view code) {
  const auto comment = [](const std::vector<std::string_view>& lines, std::size_t i) -> std::size_t {
    return lines[i].starts_with('#') ? 1 : 0;
  };
  return extract_code(code, comment, [](std::string_view line) {
    return starts_with_any(line, {"def ", "class ", "async def ", "@"});
  });
}

std::string extract_ml(std::string_view code) {
  const auto comment = [](const std::vector<std::string_view>& lines, std::size_t i) -> std::size_t {
    if (!lines[i].starts_with("(*")) return 0;
    for (std::size_t end = i; end < lines.size(); ++end) {
      if (lines[end].find("*)") != std::string_view::npos) return end - i + 1;
    }
    return 0;
  };
  return extract_code(code, comment, [](std::string_view line) {
    return starts_with_any(line, {"let ", "module ", "type "});
  });
}

std::vector<std::string> extract_fortunes(std::string_view text) {
  std::vector<std::string> entries(1);
  for (std::string_view line : lines_of(text)) {
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.remove_suffix(1);
    if (line == "%") {
      entries.emplace_back();
      continue;
    }
    // Indentation only lays verses and names out on a terminal.
    line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
    entries.back() += line;
    entries.back() += '\n';
  }
  std::erase_if(entries, [](const std::string& e) { return e.find_first_not_of('\n') == std::string::npos; });
  return entries;
}

}  // namespace emox
