#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

#include "data/corpus/extract.h"
#include "data/corpus/text.h"

namespace emox {
namespace {

using Entity = std::pair<std::string_view, std::string_view>;
constexpr auto kEntities = std::to_array<Entity>({
    {"amp", "&"},         {"lt", "<"},          {"gt", ">"},          {"quot", "\""},       {"apos", "'"},
    {"nbsp", " "},        {"copy", "\u00A9"},   {"reg", "\u00AE"},    {"sect", "\u00A7"},   {"para", "\u00B6"},
    {"deg", "\u00B0"},    {"middot", "\u00B7"}, {"times", "\u00D7"},  {"laquo", "\u00AB"},  {"raquo", "\u00BB"},
    {"auml", "\u00E4"},   {"ouml", "\u00F6"},   {"uuml", "\u00FC"},   {"Auml", "\u00C4"},   {"Ouml", "\u00D6"},
    {"Uuml", "\u00DC"},   {"szlig", "\u00DF"},  {"eacute", "\u00E9"}, {"Eacute", "\u00C9"}, {"egrave", "\u00E8"},
    {"agrave", "\u00E0"}, {"aacute", "\u00E1"}, {"iacute", "\u00ED"}, {"oacute", "\u00F3"}, {"uacute", "\u00FA"},
    {"ccedil", "\u00E7"}, {"ntilde", "\u00F1"}, {"ecirc", "\u00EA"},  {"ocirc", "\u00F4"},  {"aring", "\u00E5"},
    {"oslash", "\u00F8"}, {"aelig", "\u00E6"},  {"ndash", "\u2013"},  {"mdash", "\u2014"},  {"hellip", "\u2026"},
    {"bull", "\u2022"},   {"lsquo", "\u2018"},  {"rsquo", "\u2019"},  {"ldquo", "\u201C"},  {"rdquo", "\u201D"},
    {"bdquo", "\u201E"},  {"larr", "\u2190"},   {"rarr", "\u2192"},   {"le", "\u2264"},     {"ge", "\u2265"},
    {"ne", "\u2260"},     {"infin", "\u221E"},  {"pi", "\u03C0"},     {"alpha", "\u03B1"},  {"beta", "\u03B2"},
    {"euro", "\u20AC"},   {"frac12", "\u00BD"}, {"plusmn", "\u00B1"}, {"trade", "\u2122"},  {"minus", "\u2212"},
});

std::string utf8(unsigned code) {
  const auto tail = [&](int shift) { return static_cast<char>(0x80 | ((code >> shift) & 0x3F)); };
  if (code < 0x80) return {static_cast<char>(code)};
  if (code < 0x800) return {static_cast<char>(0xC0 | (code >> 6)), tail(0)};
  if (code < 0x10000) return {static_cast<char>(0xE0 | (code >> 12)), tail(6), tail(0)};
  return {static_cast<char>(0xF0 | (code >> 18)), tail(12), tail(6), tail(0)};
}

bool one_of(std::string_view name, std::initializer_list<std::string_view> names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

bool letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool letter_or_digit(char c) { return letter(c) || (c >= '0' && c <= '9'); }

/// One tag: `<name attributes>` or `</name>`; end is the position after it.
struct Tag {
  std::string name;
  std::string_view attributes;
  bool closing = false;
  std::size_t end = 0;
};

Tag parse_tag(std::string_view html, std::size_t at) {
  Tag tag;
  std::size_t i = at + 1;
  tag.closing = i < html.size() && html[i] == '/';
  i += tag.closing;
  for (; i < html.size() && letter_or_digit(html[i]); ++i) tag.name += static_cast<char>(html[i] | 0x20);
  const std::size_t start = i;
  char quote = 0;
  for (; i < html.size() && (quote != 0 || html[i] != '>'); ++i) {
    if (quote != 0)
      quote = html[i] == quote ? '\0' : quote;
    else if (html[i] == '"' || html[i] == '\'')
      quote = html[i];
  }
  tag.attributes = html.substr(start, i - start);
  tag.end = std::min(i + 1, html.size());
  return tag;
}

/// True if the class attribute holds one of the words that mark page furniture, or LibreOffice's variant of a menu for
/// another system (the reader sees one of them).
bool furniture(std::string_view attributes) {
  const std::size_t at = attributes.find("class=");
  if (at == std::string_view::npos) return false;
  std::string_view value = attributes.substr(at + 6);
  if (value.starts_with('"') || value.starts_with('\''))
    value = value.substr(1, value.find(value[0], 1) - 1);
  else
    value = value.substr(0, value.find_first_of(" \n\t"));
  while (!value.empty()) {
    const std::size_t space = value.find(' ');
    if (one_of(value.substr(0, space), {"nosearch", "book-navigation", "page-links", "fancy_toc", "debug", "MAC"}))
      return true;
    value = space == std::string_view::npos ? std::string_view{} : value.substr(space + 1);
  }
  return false;
}

class HtmlReader {
 public:
  explicit HtmlReader(std::string_view html) : html_(html) {}

  std::string run() {
    for (std::size_t i = 0; i < html_.size();) {
      const bool tag = html_[i] == '<' && i + 1 < html_.size() &&
                       (letter(html_[i + 1]) || html_[i + 1] == '/' || html_[i + 1] == '!' || html_[i + 1] == '?');
      if (tag) {
        i = markup(i);
        continue;
      }
      const std::size_t next = std::min(html_.find('<', i + 1), html_.size());
      if (skipped_.empty()) text(html_.substr(i, next - i));
      i = next;
    }
    return std::move(out_);
  }

 private:
  std::size_t markup(std::size_t at) {
    if (html_.substr(at).starts_with("<!--")) return after("-->", at + 4);
    if (html_[at + 1] == '!' || html_[at + 1] == '?') return after(">", at);
    const Tag tag = parse_tag(html_, at);
    if (!tag.closing && (tag.name == "script" || tag.name == "style")) return after("</" + tag.name + ">", tag.end);
    if (!skipped_.empty()) {
      if (tag.name == skipped_) depth_ += tag.closing ? -1 : 1;
      if (depth_ == 0) skipped_.clear();
      return tag.end;
    }
    const bool skip =
        one_of(tag.name, {"head", "nav", "header", "footer", "aside", "noscript", "button", "form", "select", "svg"}) ||
        (one_of(tag.name, {"div", "span"}) && furniture(tag.attributes));
    if (skip && !tag.closing) {
      skipped_ = tag.name;
      depth_ = 1;
    } else {
      layout(tag);
    }
    return tag.end;
  }

  void layout(const Tag& tag) {
    const bool heading = tag.name.size() == 2 && tag.name[0] == 'h' && tag.name[1] >= '1' && tag.name[1] <= '6';
    if (tag.name == "td" || tag.name == "th") {
      in_cell_ = !tag.closing;
      space();
    } else if (in_cell_ && tag.name != "tr" && tag.name != "table" && tag.name != "pre") {
      // A cell stays on its row's line whatever stands in it.
      if (one_of(tag.name, {"p", "div", "br", "li", "ul", "ol"})) space();
    } else if (heading) {
      lines(2);
      if (!tag.closing) out_ += kBreak;
    } else if (tag.name == "pre") {
      lines(2);
      preformatted_ = !tag.closing;
    } else if (tag.name == "li" && !tag.closing) {
      lines(1);
      if (!at_item()) out_ += "- ";
    } else if (one_of(tag.name, {"br", "tr", "dt", "dd"})) {
      if (!tag.closing) lines(1);
      in_cell_ = false;
    } else if (one_of(tag.name, {"p", "div", "section", "article", "main", "center", "table", "ul", "ol", "dl",
                                 "blockquote", "hr"})) {
      lines(2);
      if (tag.name == "table") in_cell_ = false;
    }
  }

  void text(std::string_view part) {
    for (std::size_t i = 0; i < part.size(); ++i) {
      const char c = part[i];
      if (c == '&') {
        const std::size_t end = part.find(';', i);
        const std::string decoded = end - i <= 12 ? decode_entity(part.substr(i + 1, end - i - 1)) : "";
        if (!decoded.empty()) {
          if (decoded == " " && !preformatted_)
            space();
          else
            out_ += decoded;
          i = end;
          continue;
        }
      }
      if (!preformatted_ && (c == ' ' || c == '\n' || c == '\t' || c == '\r'))
        space();
      else
        out_ += c;
    }
  }

  void space() {
    if (!out_.empty() && out_.back() != ' ' && out_.back() != '\n' && out_.back() != kBreak) out_ += ' ';
  }
  bool at_item() const { return out_ == "- " || out_.ends_with("\n- "); }
  /// At least n line ends after what was written.
  void lines(int n) {
    if (at_item()) return;  // the paragraph inside a list item begins on the bullet's line
    while (!out_.empty() && out_.back() == ' ') out_.pop_back();
    if (out_.empty() || out_.back() == kBreak) return;
    int have = 0;
    for (std::size_t i = out_.size(); i > 0 && out_[i - 1] == '\n'; --i) ++have;
    for (; have < n; ++have) out_ += '\n';
  }
  std::size_t after(std::string_view mark, std::size_t from) const {
    const std::size_t at = html_.find(mark, from);
    return at == std::string_view::npos ? html_.size() : at + mark.size();
  }

  std::string_view html_;
  std::string out_;
  std::string skipped_;  ///< the element being left out, empty: none
  int depth_ = 0;
  bool in_cell_ = false;
  bool preformatted_ = false;
};

}  // namespace

std::string decode_entity(std::string_view name) {
  if (name.starts_with('#')) {
    const bool hex = name.size() > 1 && (name[1] == 'x' || name[1] == 'X');
    unsigned code = 0;
    const char* end = name.data() + name.size();
    const auto [stop, error] = std::from_chars(name.data() + (hex ? 2 : 1), end, code, hex ? 16 : 10);
    const bool valid = error == std::errc{} && stop == end && code > 0 && code <= 0x10FFFF;
    return valid ? utf8(code) : "";
  }
  const auto found = std::find_if(kEntities.begin(), kEntities.end(), [&](const Entity& e) { return e.first == name; });
  return found == kEntities.end() ? "" : std::string(found->second);
}

std::string extract_html(std::string_view html) { return HtmlReader(html).run(); }

}  // namespace emox
