#include "launch/report/retention.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>
#include <string_view>

#include "runtime/core/error.h"

namespace emox {
namespace {

constexpr std::string_view kHeader = "model,seed,domain,selection,experts_kept,experts_total,loss";
constexpr std::size_t kFields = 7;

std::vector<std::string_view> split(std::string_view line) {
  std::vector<std::string_view> fields;
  for (;;) {
    const std::size_t comma = line.find(',');
    fields.push_back(line.substr(0, comma));
    if (comma == std::string_view::npos) return fields;
    line.remove_prefix(comma + 1);
  }
}

template <typename T>
T number(std::string_view text, const char* what, const std::string& where) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  require<UsageError>(error == std::errc{} && end == text.data() + text.size(), "{}: {} is '{}', not a number", where,
                      what, text);
  return value;
}

std::string key_of(const RetentionRow& r) {
  return fmt::format("{},{},{},{},{}", r.model, r.seed, r.domain, r.selection, r.experts_kept);
}

void check(const RetentionRow& r, const std::string& where) {
  for (const std::string& name : {r.model, r.domain})
    require<UsageError>(
        !name.empty() &&
            std::none_of(name.begin(), name.end(), [](unsigned char c) { return c == ',' || c == '"' || c < ' '; }),
        "{}: '{}' is no name of a model or a domain: it must not be empty or hold commas, quotes or control "
        "characters",
        where, name);
  require<UsageError>(std::find(std::begin(kSelections), std::end(kSelections), r.selection) != std::end(kSelections),
                      "{}: selection is '{}'; known are {}", where, r.selection, fmt::join(kSelections, ", "));
  require<UsageError>(r.seed >= 0 && r.experts_kept >= 1 && r.experts_kept <= r.experts_total,
                      "{}: seed {}, {} of {} experts: the seed is 0 or more, and 1 to all experts are kept", where,
                      r.seed, r.experts_kept, r.experts_total);
  require<UsageError>((r.selection == kSelections[0]) == (r.experts_kept == r.experts_total),
                      "{}: selection {} with {} of {} experts: full keeps all, every other fewer", where, r.selection,
                      r.experts_kept, r.experts_total);
  require<UsageError>(std::isfinite(r.loss), "{}: the loss is {}", where, r.loss);
}

}  // namespace

std::string write_retention(const std::vector<RetentionRow>& rows) {
  std::string text = fmt::format("{}\n", kHeader);
  std::set<std::string> seen;
  for (const RetentionRow& r : rows) {
    check(r, "retention.csv");
    require<UsageError>(seen.insert(key_of(r)).second, "retention.csv: two rows for {}", key_of(r));
    text += fmt::format("{},{},{},{},{},{},{}\n", r.model, r.seed, r.domain, r.selection, r.experts_kept,
                        r.experts_total, r.loss);
  }
  return text;
}

std::vector<RetentionRow> read_retention(const std::string& text, const std::string& name) {
  std::vector<RetentionRow> rows;
  std::set<std::string> seen;
  std::size_t line_number = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = text.find('\n', begin);
    const std::string where = fmt::format("{}:{}", name, ++line_number);
    require<UsageError>(end != std::string::npos, "{}: the last line has no end: the file is cut short", where);
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    if (line_number == 1) {
      require<UsageError>(line == kHeader, "{}: the header is '{}', not '{}'", where, line, kHeader);
      continue;
    }
    const auto fields = split(line);
    require<UsageError>(fields.size() == kFields, "{}: {} fields instead of {}: '{}'", where, fields.size(), kFields,
                        line);
    const RetentionRow row{std::string(fields[0]),
                           number<std::int64_t>(fields[1], "seed", where),
                           std::string(fields[2]),
                           std::string(fields[3]),
                           number<std::int64_t>(fields[4], "experts_kept", where),
                           number<std::int64_t>(fields[5], "experts_total", where),
                           number<double>(fields[6], "loss", where)};
    check(row, where);
    require<UsageError>(seen.insert(key_of(row)).second, "{}: a second line for {}", where, key_of(row));
    rows.push_back(row);
  }
  require<UsageError>(line_number > 0, "{}: the file is empty", name);
  return rows;
}

}  // namespace emox
