#include "launch/analysis/report/csv.h"

#include <fmt/format.h>

#include <algorithm>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

std::string quoted(const std::string& field) {
  if (field.find_first_of(",\"\r\n") == std::string::npos) return field;
  std::string out(1, '"');
  for (const char c : field) {
    if (c == '"') out += '"';
    out += c;
  }
  out += '"';
  return out;
}

/// Takes a field off the text, up to the comma or line end behind it.
std::string take_field(std::string_view& text, const std::string& where) {
  std::string field;
  if (!text.starts_with('"')) {
    const std::size_t end = text.find_first_of(",\n");
    require<UsageError>(end != std::string_view::npos, "{}: the last line has no end: the file is cut short", where);
    field = text.substr(0, end);
    require<UsageError>(field.find('"') == std::string::npos, "{}: a quote inside the field {}", where, field);
    text.remove_prefix(end);
    return field;
  }
  text.remove_prefix(1);
  for (;;) {
    const std::size_t quote = text.find('"');
    require<UsageError>(quote != std::string_view::npos && quote + 1 < text.size(),
                        "{}: the last line has no end: the file is cut short", where);
    field += text.substr(0, quote);
    text.remove_prefix(quote + 1);
    if (text.front() != '"') break;
    field += '"';
    text.remove_prefix(1);
  }
  require<UsageError>(text.front() == ',' || text.front() == '\n', "{}: '{}' behind the quoted field {}", where,
                      text.front(), field);
  return field;
}

}  // namespace

std::string csv_line(const std::vector<std::string>& fields) {
  std::string line;
  for (std::size_t i = 0; i < fields.size(); ++i) {
    if (i > 0) line += ',';
    line += quoted(fields[i]);
  }
  line += '\n';
  return line;
}

std::vector<CsvLine> read_csv(std::string_view text, const std::string& name) {
  require<UsageError>(!text.empty(), "{}: the file is empty", name);
  std::vector<CsvLine> lines;
  for (std::size_t number = 1; !text.empty();) {
    CsvLine line{number, {}};
    const std::string where = fmt::format("{}:{}", name, number);
    for (bool more = true; more;) {
      const std::string_view before = text;
      line.fields.push_back(take_field(text, where));
      more = text.front() == ',';
      text.remove_prefix(1);
      const std::string_view taken = before.substr(0, before.size() - text.size());
      number += idx(std::count(taken.begin(), taken.end(), '\n'));
    }
    lines.push_back(std::move(line));
  }
  return lines;
}

}  // namespace emox
