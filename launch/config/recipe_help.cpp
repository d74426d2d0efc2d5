#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <sstream>

#include "launch/config/fields.h"
#include "launch/config/nearest.h"
#include "launch/config/recipe_file.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

constexpr std::size_t kColumns = 80;

std::string wrapped(const std::string& text, const std::string& indent) {
  std::istringstream words(text);
  std::string out, line = indent;
  for (std::string word; words >> word;) {
    if (line.size() > indent.size() && line.size() + 1 + word.size() > kColumns) {
      out += line + "\n";
      line = indent;
    }
    line += (line.size() > indent.size() ? " " : "") + word;
  }
  return out + line + "\n";
}

std::string describe(const Field& field) {
  const std::string head = fmt::format("  {} = {}", field.key(), fmt::join(field.values(), " "));
  return fmt::format("{:<40} ({})\n{}", head, field.allowed(), wrapped(field.help(), "      "));
}

}  // namespace

std::string help_text(const std::string& section) {
  std::vector<std::string> sections = section_names();
  const bool all = section == "all";
  if (!all && std::count(sections.begin(), sections.end(), section) == 0) {
    sections.emplace_back("all");
    fail<UsageError>("unknown section {}: did you mean {}? (sections: {})", section, nearest(section, sections),
                     fmt::join(sections, ", "));
  }
  Recipe defaults;
  std::string text, current;
  for (const Field& field : fields_of(defaults)) {
    if (!all && field.section() != section) continue;
    if (field.section() != current)
      text += fmt::format("{}[{}]  key = default (what may be written)\n", text.empty() ? "" : "\n", field.section());
    current = field.section();
    text += describe(field);
  }
  return text;
}

}  // namespace emox
