#include <algorithm>

#include "data/corpus/extract.h"
#include "data/corpus/text.h"

namespace emox {
namespace {

bool capital(char c) { return c >= 'A' && c <= 'Z'; }

/// What L<target> shows when it has no text of its own: name, "section", or "section" in name.
std::string link_text(const std::string& content) {
  const auto bar = content.find('|');
  if (bar != std::string::npos) return content.substr(0, bar);
  const auto slash = content.find('/');
  if (slash == std::string::npos || content.find("://") != std::string::npos) return content;
  std::string section = content.substr(slash + 1);
  if (!section.starts_with('"')) section = "\"" + section + "\"";
  return slash == 0 ? section : section + " in " + content.substr(0, slash);
}

std::string rendered(char code, const std::string& content) {
  if (code == 'X' || code == 'Z') return "";
  if (code == 'L') return link_text(content);
  if (code != 'E') return content;
  if (content == "sol") return "/";
  if (content == "verbar") return "|";
  const bool digits = !content.empty() && content.find_first_not_of("0123456789") == std::string::npos;
  return decode_entity(digits ? "#" + content : content);
}

/// Replaces formatting codes from i on, until the closing mark (empty: to the end); i ends after it. A code is a
/// capital and one `<`, closed by `>`, or several and a blank, closed by a blank and as many `>`.
std::string plain(std::string_view text, std::size_t& i, const std::string& closing) {
  std::string out;
  while (i < text.size()) {
    if (!closing.empty() && text.substr(i).starts_with(closing)) {
      i += closing.size();
      return out;
    }
    if (capital(text[i]) && i + 1 < text.size() && text[i + 1] == '<') {
      const char code = text[i];
      std::size_t width = 0;
      while (i + 1 + width < text.size() && text[i + 1 + width] == '<') ++width;
      const bool wide =
          width > 1 && i + 1 + width < text.size() && (text[i + 1 + width] == ' ' || text[i + 1 + width] == '\n');
      if (!wide) width = 1;
      i += 1 + width + (wide ? 1 : 0);
      out += rendered(code, plain(text, i, std::string(wide ? 1 : 0, ' ').append(width, '>')));
      continue;
    }
    out += text[i++];
  }
  return out;
}

/// A paragraph, without the empty lines around it.
std::string_view next_paragraph(std::string_view pod, std::size_t& i) {
  while (i < pod.size() && pod[i] == '\n') ++i;
  const std::size_t start = i;
  i = std::min(pod.find("\n\n", i), pod.size());
  return pod.substr(start, i - start);
}

}  // namespace

std::string extract_pod(std::string_view pod) {
  std::string out;
  std::string block;   // the =begin block being left out
  bool inside = true;  // a .pod file may begin without a command
  for (std::size_t i = 0; i < pod.size();) {
    const std::string_view paragraph = next_paragraph(pod, i);
    if (paragraph.empty()) break;
    const bool command = paragraph[0] == '=';
    const std::size_t blank = std::min(paragraph.find_first_of(" \t\n"), paragraph.size());
    const std::string_view name = command ? paragraph.substr(1, blank - 1) : std::string_view{};
    const std::string_view argument = paragraph.substr(std::min(blank + 1, paragraph.size()));
    if (!block.empty()) {
      if (name == "end") block.clear();
      continue;
    }
    if (name == "begin") block = "begin";
    if (command) inside = name != "cut";
    const bool shown = inside && (!command || name.starts_with("head") || name == "item");
    if (!shown) continue;
    std::string_view text = command ? argument : paragraph;
    if (name.starts_with("head")) out += kBreak;
    if (name == "item") {
      out += "- ";
      text.remove_prefix(std::min(text.find_first_not_of("* "), text.size()));
      if (text.empty()) continue;  // a bullet: what it stands for is the next paragraph
    }
    std::size_t at = 0;
    const bool verbatim = !command && (paragraph[0] == ' ' || paragraph[0] == '\t');
    out += verbatim ? std::string(text) : plain(text, at, "");
    out += "\n\n";
  }
  return out;
}

}  // namespace emox
