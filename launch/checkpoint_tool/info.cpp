// `emox checkpoint info`: what is in a checkpoint, on one screen.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "launch/checkpoint_tool/checkpoint_tool.h"
#include "launch/config/arguments.h"
#include "launch/config/changes.h"
#include "launch/config/recipe_file.h"
#include "launch/run/failure.h"
#include "launch/run/find_checkpoint.h"
#include "launch/run/on_ranks.h"
#include "parallel/checkpoint/inspect.h"
#include "parallel/checkpoint/verify.h"
#include "runtime/core/error.h"
#include "runtime/telemetry/metrics.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

/// Everything that is printed.
struct Report {
  fs::path path;
  Manifest manifest;
  std::vector<SavedArray> arrays;
  std::map<std::string, ArrayStatistics> statistics;  ///< by title; what was measured
  std::int64_t routed_experts = kAllExperts;

  const ArrayStatistics* of(const SavedArray& a) const {
    const auto found = statistics.find(a.title());
    return found == statistics.end() ? nullptr : &found->second;
  }
};

bool is_routed(const Report& r, const SavedArray& a) {
  const auto place = expert_of(a.name);
  return place && place->expert < r.routed_experts;
}

std::string recipe_name(const Manifest& m) {
  if (m.recipe.empty()) return "none";
  try {
    return parse_recipe(m.recipe, "the recipe in the checkpoint").run.name;
  } catch (const UsageError&) {
    return "of another version";
  }
}

double age_of(const fs::path& checkpoint) {
  const auto written = fs::last_write_time(checkpoint / "manifest.json");
  return std::max(0.0, std::chrono::duration<double>(fs::file_time_type::clock::now() - written).count());
}

std::int64_t bytes_of_files(const Manifest& m) {
  std::int64_t bytes = 0;
  for (const ManifestFile& f : m.files) bytes += f.bytes;
  return bytes;
}

struct Totals {
  std::int64_t parameters = 0;
  bool moments = false;
};

Totals totals_of(const std::vector<SavedArray>& arrays) {
  Totals t;
  for (const SavedArray& a : arrays) {
    if (a.role == "weight") t.parameters += a.elements();
    t.moments = t.moments || a.role != "weight";
  }
  return t;
}

/// Who held the experts: "31 experts a layer over 2 ranks, 15-16 each, in blocks".
std::string placement_text(const nlohmann::json& placement) {
  if (!placement.is_object() || placement.at("table").empty()) return "";
  const auto table = placement.at("table").get<std::vector<std::vector<int>>>();
  std::size_t least = table[0].size(), most = 0;
  bool blocks = true, alike = true;
  for (const auto& layer : table) {
    std::map<int, std::size_t> counts;
    for (int r = 0; r < placement.at("expert_parallel").get<int>(); ++r) counts[r] = 0;
    for (const int rank : layer) ++counts[rank];
    for (const auto& [rank, n] : counts) least = std::min(least, n), most = std::max(most, n);
    blocks = blocks && std::is_sorted(layer.begin(), layer.end());
    alike = alike && layer == table[0];
  }
  const std::string each = least == most ? fmt::format("{}", most) : fmt::format("{}-{}", least, most);
  return fmt::format("{} experts a layer over {} rank(s), {} each, {}", table[0].size(),
                     placement.at("expert_parallel").get<int>(), each,
                     blocks  ? "in blocks"
                     : alike ? "scattered, alike in all layers"
                             : "scattered layer by layer");
}

std::string saved_by(const Manifest& m) {
  std::string text = fmt::format("saved by {} rank(s)", m.world_size);
  if (m.mesh.is_object())
    text += fmt::format(": experts over {}, {} replica(s)", m.mesh.at("expert_parallel").get<int>(),
                        m.mesh.at("data_parallel").get<int>());
  return text;
}

void print_head(const Report& r) {
  const Manifest& m = r.manifest;
  const Totals totals = totals_of(r.arrays);
  fmt::print("{}  {} old\n", r.path.string(), age_text(age_of(r.path)));
  fmt::print("step {}, {} tokens, seed {}; recipe {}\n", m.step, m.tokens, m.seed, recipe_name(m));
  fmt::print("{:.2f} M parameters{}; {} files (format {}), {}\n", static_cast<double>(totals.parameters) / 1e6,
             totals.moments ? " and their moments" : "", m.files.size(), Manifest::kFormatVersion,
             size_text(bytes_of_files(m)));
  fmt::print("{}\n", saved_by(m));
  for (const std::string& line : change_lines(changes_of(m))) fmt::print("changed at {}\n", line);
  if (const std::string text = placement_text(m.placement); !text.empty()) fmt::print("{}\n", text);
}

/// Some weights that are told together.
struct Row {
  std::string name, count, shape;
  std::vector<std::size_t> members;  ///< places in Report::arrays
};

/// The families of weights; with `join`, those of vectors as one: what each norm and bias is called says little.
std::vector<Row> rows_of(const Report& r, bool join) {
  std::vector<Row> rows;
  Row vectors{.name = "vectors (norms, biases)", .count = "", .shape = "-", .members = {}};
  for (ArrayFamily& f : families_of(r.arrays, r.routed_experts)) {
    if (f.role != "weight") continue;
    if (join && f.shape.rank() < 2)
      vectors.members.insert(vectors.members.end(), f.members.begin(), f.members.end());
    else
      rows.push_back({f.pattern, f.count, shape_text(f.shape), std::move(f.members)});
  }
  vectors.count = fmt::format("{}", vectors.members.size());
  if (!vectors.members.empty()) rows.push_back(std::move(vectors));
  return rows;
}

/// What a row's weights come to.
struct RowNorms {
  double rms = 0, least_l2 = 0, most_l2 = 0;  ///< NaN if any element is
  std::int64_t zeros = 0, not_finite = 0;
};

RowNorms norms_of(const Report& r, const Row& row) {
  RowNorms norms;
  ArrayStatistics all;
  std::vector<double> l2;
  for (const std::size_t i : row.members) {
    const ArrayStatistics& s = *r.of(r.arrays[i]);
    all.elements += s.elements, all.sum_squares += s.sum_squares;
    norms.zeros += s.zeros, norms.not_finite += s.not_finite;
    l2.push_back(s.l2());
  }
  norms.rms = all.rms();
  const auto [least, most] = std::minmax_element(l2.begin(), l2.end());
  norms.least_l2 = *least, norms.most_l2 = *most;
  if (std::isnan(norms.rms)) norms.least_l2 = norms.most_l2 = norms.rms;
  return norms;
}

std::map<std::string, std::int64_t> bytes_by_name(const Report& r) {
  std::map<std::string, std::int64_t> bytes;  // of a parameter, its moments included
  for (const SavedArray& a : r.arrays) bytes[a.name] += a.bytes();
  return bytes;
}

std::int64_t bytes_of(const Report& r, const Row& row, const std::map<std::string, std::int64_t>& by_name) {
  std::int64_t bytes = 0;
  for (const std::size_t i : row.members) bytes += by_name.at(r.arrays[i].name);
  return bytes;
}

void print_table(const Report& r, bool norms) {
  fmt::print("{:<34}{:>7}{:>11}{:>7}{}\n", "tensors", "number", "shape", "bytes", norms ? "    rms L2 min    max" : "");
  const auto by_name = bytes_by_name(r);
  for (const Row& row : rows_of(r, true)) {
    fmt::print("{:<34}{:>7}{:>11}{:>7}", short_name(row.name), row.count, row.shape,
               short_size(bytes_of(r, row, by_name)));
    if (norms) {
      const RowNorms n = norms_of(r, row);
      fmt::print("{:>7}{:>7}{:>7}", short_number(n.rms), short_number(n.least_l2), short_number(n.most_l2));
    }
    fmt::print("\n");
  }
}

std::string holder_of(const SavedArray& a) {
  return a.pieces.size() == 1 ? a.pieces[0]->file : fmt::format("{} pieces", a.pieces.size());
}

void print_all(const Report& r, bool norms) {
  std::size_t widest = 0, file = 0;
  for (const SavedArray& a : r.arrays)
    widest = std::max(widest, a.title().size()), file = std::max(file, holder_of(a).size());
  fmt::print("{:<{}}{:>12} {:<{}}{}\n", "tensor", widest, "shape", "file", file, norms ? "     rms      L2" : "");
  for (const SavedArray& a : r.arrays) {
    fmt::print("{:<{}}{:>12} {:<{}}", a.title(), widest, shape_text(a.shape), holder_of(a), file);
    if (const ArrayStatistics* s = r.of(a)) fmt::print("{:>8}{:>8}", short_number(s->rms()), short_number(s->l2()));
    fmt::print("\n");
  }
}

/// How far an expert is from the median of its layer.
struct Outlier {
  ExpertPlace place;
  double ratio = 1;
};
struct Outliers {
  Outlier least, most;
};

/// Of the routed experts' values, by layer and expert; nothing to tell without two experts.
std::optional<Outliers> outliers_of(const std::map<std::int64_t, std::map<std::int64_t, double>>& layers) {
  std::optional<Outliers> found;
  for (const auto& [layer, experts] : layers) {
    std::vector<double> values;
    for (const auto& [expert, value] : experts)
      if (!std::isnan(value)) values.push_back(value);
    if (values.size() < 2) continue;
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    const double median = *middle;
    for (const auto& [expert, value] : experts) {
      if (std::isnan(value) || median == 0) continue;
      const Outlier one{{layer, expert}, value / median};
      if (!found) found = Outliers{one, one};
      if (one.ratio < found->least.ratio) found->least = one;
      if (one.ratio > found->most.ratio) found->most = one;
    }
  }
  return found;
}

/// Of each routed expert: the L2 norm of its weights, or the size of its recent gradients, the root of the mean of
/// their running mean square. An expert that tokens no longer reach keeps its weights for long, its gradients not.
std::optional<Outliers> expert_outliers(const Report& r, const std::string& role) {
  std::map<std::int64_t, std::map<std::int64_t, ArrayStatistics>> sums;
  for (const SavedArray& a : r.arrays) {
    const ArrayStatistics* s = r.of(a);
    if (a.role != role || s == nullptr || !is_routed(r, a)) continue;
    const ExpertPlace place = *expert_of(a.name);
    ArrayStatistics& sum = sums[place.layer][place.expert];
    sum.elements += s->elements, sum.sum += s->sum, sum.sum_squares += s->sum_squares;
  }
  std::map<std::int64_t, std::map<std::int64_t, double>> values;
  for (const auto& [layer, experts] : sums)
    for (const auto& [expert, s] : experts) values[layer][expert] = role == "weight" ? s.l2() : std::sqrt(s.mean());
  return outliers_of(values);
}

constexpr struct {
  const char *role, *text, *key;
} kExpertMeasures[] = {{"weight", "L2 of weights", "weights"}, {"exp_avg_sq", "recent gradients", "gradients"}};

void print_experts(const Report& r) {
  bool first = true;
  for (const auto& m : kExpertMeasures) {
    const auto found = expert_outliers(r, m.role);
    if (!found) continue;
    if (std::exchange(first, false)) fmt::print("experts, over the median of their layer:\n");
    const auto text = [](const Outlier& o) {
      return fmt::format("{} (layer {} expert {})", short_number(o.ratio), o.place.layer, o.place.expert);
    };
    fmt::print("  {:<17} {} to {}\n", m.text, text(found->least), text(found->most));
  }
}

void print_not_finite(const Report& r) {
  std::int64_t elements = 0;
  const SavedArray* first = nullptr;
  for (const SavedArray& a : r.arrays)
    if (const ArrayStatistics* s = r.of(a); s != nullptr && s->not_finite > 0) {
      elements += s->not_finite;
      if (first == nullptr) first = &a;
    }
  if (first != nullptr) fmt::print("NOT FINITE: {} elements, the first tensor is {}\n", elements, first->title());
}

ordered_json json_of(const Report& r, const SavedArray& a) {
  ordered_json j{{"name", a.name},
                 {"role", a.role},
                 {"dtype", std::string(name_of(a.dtype))},
                 {"shape", json_shape(a.shape)},
                 {"bytes", a.bytes()}};
  if (const ArrayStatistics* s = r.of(a)) {
    j["l2"] = json_number(s->l2()), j["rms"] = json_number(s->rms()), j["mean"] = json_number(s->mean());
    j["min"] = json_number(s->least), j["max"] = json_number(s->most);
    j["zeros"] = s->zeros, j["not_finite"] = s->not_finite;
  }
  return j;
}

ordered_json to_json(const Report& r, bool all, bool norms) {
  const Manifest& m = r.manifest;
  const Totals totals = totals_of(r.arrays);
  ordered_json j{{"checkpoint", r.path.string()},
                 {"age_s", age_of(r.path)},
                 {"format", Manifest::kFormatVersion},
                 {"step", m.step},
                 {"tokens", m.tokens},
                 {"seed", m.seed},
                 {"recipe", recipe_name(m)},
                 {"world_size", m.world_size},
                 {"changes", changes_of(m)},
                 {"mesh", m.mesh},
                 {"placement", placement_text(m.placement)},
                 {"parameters", totals.parameters},
                 {"moments", totals.moments},
                 {"files", m.files.size()},
                 {"bytes", bytes_of_files(m)}};
  const auto by_name = bytes_by_name(r);
  for (const Row& row : rows_of(r, false)) {
    const SavedArray& one = r.arrays[row.members[0]];
    ordered_json k{{"name", row.name},
                   {"members", row.members.size()},
                   {"count", row.count},
                   {"dtype", std::string(name_of(one.dtype))},
                   {"shape", json_shape(one.shape)},
                   {"bytes", bytes_of(r, row, by_name)}};
    if (norms) {
      const RowNorms n = norms_of(r, row);
      k["rms"] = json_number(n.rms), k["l2_min"] = json_number(n.least_l2), k["l2_max"] = json_number(n.most_l2);
      k["zeros"] = n.zeros, k["not_finite"] = n.not_finite;
    }
    j["families"].push_back(k);
  }
  for (const auto& measure : kExpertMeasures)
    if (const auto found = expert_outliers(r, measure.role)) {
      const auto one = [](const Outlier& o) {
        return ordered_json{
            {"over_median", json_number(o.ratio)}, {"layer", o.place.layer}, {"expert", o.place.expert}};
      };
      j["experts"][measure.key] = {{"least", one(found->least)}, {"most", one(found->most)}};
    }
  if (all)
    for (const SavedArray& a : r.arrays) j["tensors"].push_back(json_of(r, a));
  return j;
}

/// The weights, and what tells an expert's gradients; with `all` everything.
void measure(Communicator& comm, Report& r, bool all) {
  std::vector<SavedArray> wanted;
  for (const SavedArray& a : r.arrays)
    if (all || a.role == "weight" || (a.role == "exp_avg_sq" && is_routed(r, a))) wanted.push_back(a);
  const std::vector<ArrayStatistics> statistics = measure_arrays(comm, r.path, wanted);
  for (std::size_t i = 0; i < wanted.size(); ++i) r.statistics.emplace(wanted[i].title(), statistics[i]);
}

}  // namespace

int checkpoint_info(const std::vector<std::string>& args) {
  const Arguments a = parse_args(args, {.command = "emox checkpoint info",
                                        .flags = {"--all", "--no-norms", "--json"},
                                        .rank_keys = true,
                                        .min_positional = 1,
                                        .max_positional = 1,
                                        .positional = "RUN|CHECKPOINT"});
  const bool all = a.has("--all"), norms = !a.has("--no-norms");
  return on_ranks(a.overrides, [&](Session& session) {
    const auto found = find_checkpoint(session, a.positional[0], norms ? Glance::Content : Glance::Sizes);
    Report r{.path = found.path,
             .manifest = manifest_everywhere(session.comm(), found.path, found.manifest),
             .arrays = {},
             .statistics = {}};
    r.arrays = arrays_of(r.manifest);
    r.routed_experts = routed_experts_of(r.manifest);
    if (norms) {
      if (found.named) verify_files(session.comm(), r.path, r.manifest, files_of(r.arrays));
      measure(session.comm(), r, all);
    }
    if (!session.root()) return static_cast<int>(kDone);
    if (a.has("--json")) {
      fmt::print("{}\n", to_line(to_json(r, all, norms)));
      return static_cast<int>(kDone);
    }
    print_head(r);
    if (all)
      print_all(r, norms);
    else
      print_table(r, norms);
    print_experts(r);
    print_not_finite(r);
    return static_cast<int>(kDone);
  });
}

}  // namespace emox
