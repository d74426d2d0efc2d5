// `emox checkpoint diff`: what two checkpoints do not have in common.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include "data/loader/identity.h"
#include "launch/checkpoint_tool/checkpoint_tool.h"
#include "launch/config/arguments.h"
#include "launch/config/fields.h"
#include "launch/config/recipe_file.h"
#include "launch/run/failure.h"
#include "launch/run/find_checkpoint.h"
#include "launch/run/on_ranks.h"
#include "parallel/checkpoint/checksum.h"
#include "parallel/checkpoint/compare.h"
#include "parallel/checkpoint/inspect.h"
#include "runtime/core/error.h"
#include "runtime/telemetry/json_text.h"
#include "runtime/telemetry/metrics.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr std::size_t kHeaderLines = 4, kTableLines = 8, kWorstLines = 3;

struct Side {
  fs::path path;
  bool verified = false;
  Manifest manifest;
  std::vector<SavedArray> arrays;
};

Side open_side(Session& session, const std::string& argument) {
  const FoundCheckpoint found = find_checkpoint(session, argument);
  return {.path = found.path,
          .verified = !found.named,
          .manifest = manifest_everywhere(session.comm(), found.path, found.manifest),
          .arrays = {}};
}

/// What is not a tensor: its name and both values.
struct HeaderDifference {
  std::string what, a, b;
};

using Values = std::map<std::string, std::string>;

/// The recipe's keys; nothing when another version of emox wrote it.
std::optional<Values> keys_of(const std::string& recipe_text) {
  try {
    Recipe recipe = parse_recipe(recipe_text, "the recipe in the checkpoint");
    Values values;
    for (const Field& field : fields_of(recipe))
      values[field.name()] = fmt::format("{}", fmt::join(field.values(), " "));
    return values;
  } catch (const UsageError&) {
    return std::nullopt;
  }
}

std::string text_of(const std::vector<FileIdentity>& files) {
  std::int64_t tokens = 0;
  std::string content;
  for (const FileIdentity& f : files) {
    tokens += f.layout.tokens;
    content += fmt::format("{} {} {}\n", name_of(f.layout.type), f.fingerprint, f.index);
  }
  return files.empty() ? "-" : fmt::format("{} tokens in {} file(s), {}", tokens, files.size(), checksum_of(content));
}

/// What the data hold, a line for each source; not where they lie.
void append_data(Values& values, const nlohmann::json& json) {
  try {
    for (const SourceIdentity& s : data_identity_from(json).sources)
      values[fmt::format("{}.{}", kDataKey, s.label)] =
          fmt::format("training {}; held out {}; tuning {}", text_of(s.train), text_of(s.held_out), text_of(s.tune));
  } catch (const IoError&) {  // of another version
    values[kDataKey] = json_text(json);
  }
}

Values extra_of(const nlohmann::json& extra) {
  Values values;
  if (!extra.is_object()) return {{"", json_text(extra)}};
  for (const auto& [key, value] : extra.items())
    if (key == kDataKey)
      append_data(values, value);
    else
      values[key] = json_text(value);
  return values;
}

void append(std::vector<HeaderDifference>& list, const std::string& front, const Values& a, const Values& b) {
  std::set<std::string> names;
  for (const Values* values : {&a, &b})
    for (const auto& [name, value] : *values) names.insert(name);
  for (const std::string& name : names) {
    const auto value_in = [&](const Values& values) {
      const auto found = values.find(name);
      return found == values.end() ? std::string("-") : found->second;
    };
    if (value_in(a) != value_in(b)) list.push_back({front + name, value_in(a), value_in(b)});
  }
}

std::vector<HeaderDifference> compare_headers(const Manifest& a, const Manifest& b) {
  std::vector<HeaderDifference> list;
  const auto numbers = [](const Manifest& m) {
    return Values{{"step", fmt::format("{}", m.step)},
                  {"tokens", fmt::format("{}", m.tokens)},
                  {"seed", fmt::format("{}", m.seed)},
                  {"ranks", fmt::format("{}", m.world_size)},
                  {"mesh", json_text(m.mesh)}};
  };
  append(list, "", numbers(a), numbers(b));
  if (a.placement != b.placement) list.push_back({"placement", "one table", "another"});
  const auto keys_a = keys_of(a.recipe), keys_b = keys_of(b.recipe);
  if (keys_a && keys_b)
    append(list, "", *keys_a, *keys_b);
  else if (a.recipe != b.recipe)
    list.push_back(
        {"recipe", keys_a ? "one text" : "one of another version", keys_b ? "another" : "another version's"});
  append(list, "extra.", extra_of(a.extra), extra_of(b.extra));
  return list;
}

/// Arrays that differ and are told together.
struct Row {
  std::string name;
  std::size_t members = 0, all = 0;
  std::int64_t different = 0, unordered = 0;
  double largest = 0, relative = 0;  ///< of the member with most; NaN stays
};

double larger(double a, double b) { return std::isnan(a) || a > b ? a : b; }

/// How bad a difference is: no numbers come first, then weights before moments, then how much of the whole it is.
using Badness = std::tuple<bool, bool, double>;
Badness badness(std::int64_t unordered, bool weight, double relative) {
  return {unordered > 0, weight, std::isnan(relative) ? HUGE_VAL : relative};
}

/// A family of weights each; its moments, of which there are many, only with `all`, and else as one.
std::vector<Row> rows_of(const CheckpointDifference& d, std::int64_t routed_experts, bool all) {
  std::map<std::pair<bool, std::string>, Row> rows;  // moments?, name
  for (const ArrayDifference& a : d.arrays) {
    const bool weight = a.role == "weight";
    std::string name = short_name(family_of(a.name, routed_experts));
    if (!weight) name = all ? fmt::format("{} {}", name, a.role) : "all " + a.role;
    Row& row = rows.try_emplace({!weight, name}, Row{.name = name}).first->second;
    ++row.all;
    if (a.equal()) continue;
    ++row.members;
    row.different += a.different, row.unordered += a.unordered;
    row.largest = larger(row.largest, larger(a.largest, row.largest));
    row.relative = larger(row.relative, larger(a.relative(), row.relative));
  }
  std::vector<std::pair<Badness, Row>> list;
  for (auto& [key, row] : rows)
    if (row.members > 0) list.emplace_back(badness(row.unordered, !key.first, row.relative), std::move(row));
  std::stable_sort(list.begin(), list.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  std::vector<Row> sorted;
  for (auto& [bad, row] : list) sorted.push_back(std::move(row));
  return sorted;
}

/// Those that differ, the worst first.
std::vector<const ArrayDifference*> worst_first(const CheckpointDifference& d) {
  std::vector<const ArrayDifference*> list;
  for (const ArrayDifference& a : d.arrays)
    if (!a.equal()) list.push_back(&a);
  const auto key = [](const ArrayDifference* a) { return badness(a->unordered, a->role == "weight", a->relative()); };
  std::stable_sort(list.begin(), list.end(), [&](const auto* a, const auto* b) { return key(a) > key(b); });
  return list;
}

std::string shortened(const std::string& text) { return text.size() <= 28 ? text : text.substr(0, 25) + "..."; }

void print_headers(const std::vector<HeaderDifference>& headers, bool all) {
  const std::size_t n = all ? headers.size() : std::min(headers.size(), kHeaderLines);
  for (std::size_t i = 0; i < n; ++i)
    fmt::print("{}: {} | {}\n", headers[i].what, all ? headers[i].a : shortened(headers[i].a),
               all ? headers[i].b : shortened(headers[i].b));
  if (n < headers.size()) fmt::print("and {} more keys (--all)\n", headers.size() - n);
}

void print_mismatches(const std::vector<ArrayMismatch>& list, bool all) {
  const std::size_t n = all ? list.size() : std::min(list.size(), kWorstLines);
  for (std::size_t i = 0; i < n; ++i) {
    const ArrayMismatch& m = list[i];
    if (m.a.empty() || m.b.empty())
      fmt::print("only in {}: {}\n", m.b.empty() ? "A" : "B", m.title);
    else
      fmt::print("other shape: {}: {} | {}\n", m.title, m.a, m.b);
  }
  if (n < list.size()) fmt::print("and {} more that only one has or whose shape differs (--all)\n", list.size() - n);
}

void print_table(const std::vector<Row>& rows, bool all) {
  const std::size_t n = all ? rows.size() : std::min(rows.size(), kTableLines);
  fmt::print("{:<40}{:>12}{:>12}{:>7}{:>8}\n", "tensors", "number", "elements", "max", "rel L2");
  for (std::size_t i = 0; i < n; ++i)
    fmt::print("{:<40}{:>12}{:>12}{:>7}{:>8}\n", rows[i].name, fmt::format("{} of {}", rows[i].members, rows[i].all),
               rows[i].different, short_number(rows[i].largest), short_number(rows[i].relative));
  if (n < rows.size()) fmt::print("and {} more kinds (--all)\n", rows.size() - n);
}

void print_worst(const CheckpointDifference& d, bool all) {
  const auto list = worst_first(d);
  const std::size_t n = all ? list.size() : std::min(list.size(), kWorstLines);
  for (std::size_t i = 0; i < n; ++i) {
    const ArrayDifference& a = *list[i];
    fmt::print("{}{}{}: {} of {} elements, rel L2 {}\n  max {} at {}: {:.9g} | {:.9g}\n", short_name(a.name),
               a.role == "weight" ? "" : " ", a.role == "weight" ? "" : a.role, a.different, a.shape.numel(),
               short_number(a.relative()), short_number(a.largest), index_text(a.shape, a.worst), a.a, a.b);
  }
}

void print_difference(const std::vector<HeaderDifference>& headers, const CheckpointDifference& d,
                      std::int64_t routed_experts, bool all) {
  print_headers(headers, all);
  print_mismatches(d.mismatches, all);
  const std::vector<Row> rows = rows_of(d, routed_experts, all);
  if (d.equal()) {
    fmt::print("all {} tensors are equal\n", d.arrays.size());
    return;
  }
  const auto equal = std::count_if(d.arrays.begin(), d.arrays.end(), [](const auto& a) { return a.equal(); });
  fmt::print("{} tensors are equal, {} differ\n", equal, static_cast<std::int64_t>(d.arrays.size()) - equal);
  if (rows.empty()) return;
  print_table(rows, all);
  print_worst(d, all);
}

ordered_json to_json(const Side& a, const Side& b, const std::vector<HeaderDifference>& headers,
                     const CheckpointDifference& d) {
  ordered_json j{{"a", a.path.string()}, {"b", b.path.string()}, {"equal", d.equal()}, {"compared", d.arrays.size()}};
  j["header"] = ordered_json::array(), j["only_in_a"] = ordered_json::array();
  j["only_in_b"] = ordered_json::array(), j["other_shape"] = ordered_json::array();
  j["different"] = ordered_json::array();
  for (const HeaderDifference& h : headers) j["header"].push_back({{"what", h.what}, {"a", h.a}, {"b", h.b}});
  for (const ArrayMismatch& m : d.mismatches) {
    if (m.b.empty())
      j["only_in_a"].push_back(m.title);
    else if (m.a.empty())
      j["only_in_b"].push_back(m.title);
    else
      j["other_shape"].push_back({{"tensor", m.title}, {"a", m.a}, {"b", m.b}});
  }
  for (const ArrayDifference* x : worst_first(d))
    j["different"].push_back({{"name", x->name},
                              {"role", x->role},
                              {"shape", json_shape(x->shape)},
                              {"elements", x->different},
                              {"not_a_number", x->unordered},
                              {"relative_l2", json_number(x->relative())},
                              {"max", json_number(x->largest)},
                              {"at", x->worst},
                              {"a", json_number(x->a)},
                              {"b", json_number(x->b)}});
  return j;
}

}  // namespace

int checkpoint_diff(const std::vector<std::string>& args) {
  const Arguments a = parse_args(args, {.command = "emox checkpoint diff",
                                        .flags = {"--all", "--json"},
                                        .rank_keys = true,
                                        .min_positional = 2,
                                        .max_positional = 2,
                                        .positional = "A B"});
  return on_ranks(a.overrides, [&](Session& session) {
    Side sides[2] = {open_side(session, a.positional[0]), open_side(session, a.positional[1])};
    for (Side& side : sides) {
      side.arrays = arrays_of(side.manifest);
      if (!side.verified) verify_files(session.comm(), side.path, side.manifest, files_of(side.arrays));
    }
    const CheckpointDifference d =
        compare_checkpoints(session.comm(), {sides[0].path, sides[0].arrays}, {sides[1].path, sides[1].arrays});
    if (!session.root()) return static_cast<int>(kDone);
    const auto headers = compare_headers(sides[0].manifest, sides[1].manifest);
    if (a.has("--json")) {
      fmt::print("{}\n", to_line(to_json(sides[0], sides[1], headers, d)));
    } else {
      fmt::print("A {}\nB {}\n", sides[0].path.string(), sides[1].path.string());
      print_difference(headers, d, routed_experts_of(sides[0].manifest), a.has("--all"));
    }
    return static_cast<int>(d.equal() ? kDone : kFailed);
  });
}

}  // namespace emox
