#include "launch/analysis/report/retention.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>
#include <string_view>
#include <tuple>

#include "launch/analysis/report/csv.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

constexpr const char* kRetentionHeader = "model,seed,domain,selection,experts_kept,experts_total,loss";
constexpr const char* kChanceHeader = "model,seed,domain,experts_kept,experts_total,draw,loss";
constexpr std::size_t kFields = 7;

template <typename T>
T number(std::string_view text, const char* what, const std::string& where) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  require<UsageError>(error == std::errc{} && end == text.data() + text.size(), "{}: {} is '{}', not a number", where,
                      what, text);
  return value;
}

std::int64_t whole(const std::string& text, const char* what, const std::string& where) {
  return number<std::int64_t>(text, what, where);
}

auto key_of(const RetentionRow& r) { return std::tuple(r.model, r.seed, r.domain, r.selection, r.experts_kept); }
auto key_of(const ChanceRow& r) { return std::tuple(r.model, r.seed, r.domain, r.experts_kept, r.draw); }

std::string text_of(const RetentionRow& r) {
  return fmt::format("{},{},{},{},{}", r.model, r.seed, r.domain, r.selection, r.experts_kept);
}
std::string text_of(const ChanceRow& r) {
  return fmt::format("{},{},{},{},{}", r.model, r.seed, r.domain, r.experts_kept, r.draw);
}

void check_common(const std::string& model, const std::string& domain, std::int64_t seed, std::int64_t kept,
                  std::int64_t total, double loss, const std::string& where) {
  require<UsageError>(!model.empty() && !domain.empty(), "{}: '{}' is no name of a {}", where, "",
                      model.empty() ? "model" : "domain");
  require<UsageError>(seed >= 0 && kept >= 1 && kept <= total,
                      "{}: seed {}, {} of {} experts: the seed is 0 or more, and 1 to all experts are kept", where,
                      seed, kept, total);
  require<UsageError>(std::isfinite(loss), "{}: the loss is {}", where, loss);
}

void check(const RetentionRow& r, const std::string& where) {
  require<UsageError>(std::find(std::begin(kSelections), std::end(kSelections), r.selection) != std::end(kSelections),
                      "{}: selection is '{}'; known are {}", where, r.selection, fmt::join(kSelections, ", "));
  check_common(r.model, r.domain, r.seed, r.experts_kept, r.experts_total, r.loss, where);
  require<UsageError>((r.selection == kSelections[0]) == (r.experts_kept == r.experts_total),
                      "{}: selection {} with {} of {} experts: full keeps all, every other fewer", where, r.selection,
                      r.experts_kept, r.experts_total);
}

void check(const ChanceRow& r, const std::string& where) {
  check_common(r.model, r.domain, r.seed, r.experts_kept, r.experts_total, r.loss, where);
  require<UsageError>(r.draw >= 0 && r.experts_kept < r.experts_total,
                      "{}: draw {} of {} of {} experts: draws count from 0, and keep fewer than all", where, r.draw,
                      r.experts_kept, r.experts_total);
}

std::vector<std::string> fields_of(const RetentionRow& r) {
  return {r.model,
          fmt::format("{}", r.seed),
          r.domain,
          r.selection,
          fmt::format("{}", r.experts_kept),
          fmt::format("{}", r.experts_total),
          fmt::format("{}", r.loss)};
}
std::vector<std::string> fields_of(const ChanceRow& r) {
  return {r.model,
          fmt::format("{}", r.seed),
          r.domain,
          fmt::format("{}", r.experts_kept),
          fmt::format("{}", r.experts_total),
          fmt::format("{}", r.draw),
          fmt::format("{}", r.loss)};
}

void row_of(const std::vector<std::string>& f, const std::string& where, RetentionRow& row) {
  row = {f[0],
         whole(f[1], "seed", where),
         f[2],
         f[3],
         whole(f[4], "experts_kept", where),
         whole(f[5], "experts_total", where),
         number<double>(f[6], "loss", where)};
}
void row_of(const std::vector<std::string>& f, const std::string& where, ChanceRow& row) {
  row = {f[0],
         whole(f[1], "seed", where),
         f[2],
         whole(f[3], "experts_kept", where),
         whole(f[4], "experts_total", where),
         whole(f[5], "draw", where),
         number<double>(f[6], "loss", where)};
}

template <typename Row>
std::string write_rows(const std::vector<Row>& rows, const char* header, const char* name) {
  std::string text = fmt::format("{}\n", header);
  std::set<decltype(key_of(rows[0]))> seen;
  for (const Row& r : rows) {
    check(r, name);
    require<UsageError>(seen.insert(key_of(r)).second, "{}: two rows for {}", name, text_of(r));
    text += csv_line(fields_of(r));
  }
  return text;
}

template <typename Row>
std::vector<Row> read_rows(const std::string& text, const std::string& name, const char* header) {
  std::vector<Row> rows;
  std::set<decltype(key_of(Row()))> seen;
  for (const CsvLine& line : read_csv(text, name)) {
    const std::string where = fmt::format("{}:{}", name, line.number);
    const std::string whole_line = fmt::format("{}", fmt::join(line.fields, ","));
    if (line.number == 1) {
      require<UsageError>(whole_line == header, "{}: the header is '{}', not '{}'", where, whole_line, header);
      continue;
    }
    require<UsageError>(line.fields.size() == kFields, "{}: {} fields instead of {}: '{}'", where, line.fields.size(),
                        kFields, whole_line);
    Row row;
    row_of(line.fields, where, row);
    check(row, where);
    require<UsageError>(seen.insert(key_of(row)).second, "{}: a second line for {}", where, text_of(row));
    rows.push_back(row);
  }
  return rows;
}

}  // namespace

std::string write_retention(const std::vector<RetentionRow>& rows) {
  return write_rows(rows, kRetentionHeader, "retention.csv");
}
std::vector<RetentionRow> read_retention(const std::string& text, const std::string& name) {
  return read_rows<RetentionRow>(text, name, kRetentionHeader);
}

std::string write_chance(const std::vector<ChanceRow>& rows) { return write_rows(rows, kChanceHeader, "chance.csv"); }
std::vector<ChanceRow> read_chance(const std::string& text, const std::string& name) {
  return read_rows<ChanceRow>(text, name, kChanceHeader);
}

}  // namespace emox
