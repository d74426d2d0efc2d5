#include "launch/plan/hardware.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "launch/config/nearest.h"
#include "launch/config/shared_files.h"
#include "runtime/core/error.h"
#include "runtime/files/files.h"

namespace emox {
namespace {

using HardwareJson = nlohmann::json;

/// An object of the file, whose keys are all asked for.
class HardwareReader {
 public:
  HardwareReader(const HardwareJson& json, std::string file, std::string place)
      : json_(json), file_(std::move(file)), place_(std::move(place)) {
    require<UsageError>(json_.is_object(), "{}: {} is no object", file_, place_.empty() ? "the whole" : place_);
  }

  bool has(const char* key) {
    known_.insert(key);
    return json_.contains(key);
  }
  const HardwareJson& at(const char* key) {
    require<UsageError>(has(key), "{}: {} is missing; `emox bench rates --output FILE` writes a whole file", file_,
                        name(key));
    return json_[key];
  }
  std::string text(const char* key, const std::string& otherwise) {
    if (!has(key)) return otherwise;
    require<UsageError>(json_[key].is_string(), "{}: {} is no text", file_, name(key));
    return json_[key].get<std::string>();
  }
  double number(const char* key, double least, double most) {
    const HardwareJson& j = at(key);
    require<UsageError>(j.is_number() && j.get<double>() >= least && j.get<double>() <= most,
                        "{}: {} = {} is no number between {} and {}", file_, name(key), j.dump(), least, most);
    return j.get<double>();
  }
  std::string tag(const char* key) {
    std::string tag = text(key, "assumed");
    require<UsageError>(tag == "measured" || tag == "datasheet" || tag == "assumed",
                        "{}: {} = {}: use measured, datasheet or assumed", file_, name(key), tag);
    return tag;
  }
  HardwareReader inner(const char* key) { return {at(key), file_, name(key)}; }
  Figure figure(const char* key, double least, double most) {
    HardwareReader r = inner(key);
    Figure f{r.number("value", least, most), r.tag("tag"), r.text("source", "")};
    r.finish();
    return f;
  }
  std::string name(const std::string& key) const { return place_.empty() ? key : place_ + "." + key; }
  /// UsageError for a key that nobody asked for.
  void finish() const {
    for (const auto& [key, value] : json_.items())
      require<UsageError>(known_.count(key) > 0, "{}: there is no {}; did you mean {}?", file_, name(key),
                          nearest(key, {known_.begin(), known_.end()}));
  }

 private:
  const HardwareJson& json_;
  std::string file_, place_;
  std::set<std::string> known_;
};

constexpr double kMost = 1e18;

Link link_of(HardwareReader r) {
  Link link{r.figure("bytes_s", 1, kMost), r.figure("latency_s", 0, 10)};
  r.finish();
  return link;
}

OpRates rates_of(HardwareReader r) {
  OpRates o;
  o.width = r.number("width", 1, 1e9);
  for (auto& [key, value] : {std::pair<const char*, double*>{"dense", &o.dense},
                             {"experts", &o.experts},
                             {"head", &o.head},
                             {"attention", &o.attention},
                             {"rows", &o.rows},
                             {"optimizer", &o.optimizer}})
    *value = r.number(key, 1e-4, 10);
  o.layer_s = r.number("layer_s", 0, 10);
  r.finish();
  return o;
}

nlohmann::ordered_json to_json(const Figure& f) {
  nlohmann::ordered_json j = {{"value", f.value}, {"tag", f.tag}};
  if (!f.source.empty()) j["source"] = f.source;
  return j;
}

}  // namespace

Hardware hardware_from_json(const HardwareJson& json, const std::string& file) {
  HardwareReader r(json, file, "");
  Hardware h;
  h.name = r.text("name", "");
  require<UsageError>(!h.name.empty(), "{}: name is missing", file);
  h.note = r.text("note", "");
  const std::string kind = r.text("kind", ""), precision = r.text("precision", "f32");
  require<UsageError>(kind == "cpu" || kind == "gpu", "{}: kind = \"{}\": use cpu or gpu", file, kind);
  require<UsageError>(precision == "f32" || (precision == "bf16" && kind == "gpu"),
                      "{}: precision = \"{}\": use f32, or on a gpu bf16", file, precision);
  h.gpu = kind == "gpu";
  h.precision = precision == "bf16" ? DType::BF16 : DType::F32;
  h.ranks_per_node = static_cast<int>(r.number("ranks_per_node", 1, 65536));
  h.threads = static_cast<int>(r.number("threads", 1, 65536));
  h.memory = r.figure("memory", 1, kMost);
  if (r.has("base")) h.base = r.figure("base", 0, kMost);
  h.gemm = r.figure("gemm", 1, kMost);
  h.peak = r.has("peak") ? r.figure("peak", 1, kMost) : h.gemm;
  h.copy = r.figure("copy", 1, kMost);
  h.same_node = link_of(r.inner("same_node"));
  h.other_nodes = link_of(r.inner("other_nodes"));
  h.write = r.figure("write", 1, kMost);
  h.read = r.figure("read", 1, kMost);
  if (r.has("watts")) h.watts = r.number("watts", 0, 1e6);
  HardwareReader ops = r.inner("ops");
  h.ops_tag = ops.tag("tag");
  h.ops_source = ops.text("source", "");
  const HardwareJson& widths = ops.at("widths");
  require<UsageError>(widths.is_array() && !widths.empty(), "{}: ops.widths is no list of one or more", file);
  for (std::size_t i = 0; i < widths.size(); ++i)
    h.ops.push_back(rates_of({widths[i], file, fmt::format("ops.widths[{}]", i)}));
  std::sort(h.ops.begin(), h.ops.end(), [](const OpRates& a, const OpRates& b) { return a.width < b.width; });
  ops.finish();
  r.finish();
  return h;
}

nlohmann::ordered_json to_json(const Hardware& h) {
  const auto link = [](const Link& l) {
    return nlohmann::ordered_json{{"bytes_s", to_json(l.bytes_s)}, {"latency_s", to_json(l.latency_s)}};
  };
  auto widths = nlohmann::ordered_json::array();
  for (const OpRates& o : h.ops)
    widths.push_back({{"width", o.width},
                      {"dense", o.dense},
                      {"experts", o.experts},
                      {"head", o.head},
                      {"attention", o.attention},
                      {"rows", o.rows},
                      {"optimizer", o.optimizer},
                      {"layer_s", o.layer_s}});
  nlohmann::ordered_json j = {{"name", h.name},
                              {"kind", h.gpu ? "gpu" : "cpu"},
                              {"precision", name_of(h.precision)},
                              {"ranks_per_node", h.ranks_per_node},
                              {"threads", h.threads},
                              {"memory", to_json(h.memory)},
                              {"base", to_json(h.base)},
                              {"gemm", to_json(h.gemm)},
                              {"peak", to_json(h.peak)},
                              {"copy", to_json(h.copy)},
                              {"ops", {{"tag", h.ops_tag}, {"source", h.ops_source}, {"widths", widths}}},
                              {"same_node", link(h.same_node)},
                              {"other_nodes", link(h.other_nodes)},
                              {"write", to_json(h.write)},
                              {"read", to_json(h.read)}};
  if (h.watts > 0) j["watts"] = h.watts;
  if (!h.note.empty()) j["note"] = h.note;
  return j;
}

std::vector<std::string> hardware_names() {
  std::vector<std::string> names;
  for (const auto& file : shared_files("hardware", ".json")) names.push_back(file.stem().string());
  return names;
}

Hardware load_hardware(const std::string& name_or_file) {
  std::filesystem::path path = name_or_file;
  if (!name_or_file.ends_with(".json") && name_or_file.find('/') == std::string::npos) {
    const auto files = shared_files("hardware", ".json");
    const auto found = std::find_if(files.begin(), files.end(), [&](const auto& f) { return f.stem() == path; });
    if (found == files.end()) {
      const auto names = hardware_names();
      require<UsageError>(!names.empty(),
                          "{} is no file, and the hardware files that come with emox (share/emox/hardware) are not "
                          "beside it: name a file, as `emox bench rates --output FILE` writes one",
                          name_or_file);
      const auto begins = std::find_if(names.begin(), names.end(),
                                       [&](const std::string& name) { return name.starts_with(name_or_file); });
      fail<UsageError>(
          "there is no hardware {}; did you mean {}? There are: {}; or name a file, as `emox bench "
          "rates --output FILE` writes one",
          name_or_file, begins != names.end() ? *begins : nearest(name_or_file, names), fmt::join(names, " "));
    }
    path = *found;
  }
  HardwareJson json;
  try {
    json = HardwareJson::parse(read_text(path));
  } catch (const HardwareJson::exception& e) {
    fail<UsageError>("{} is no JSON: {}", path.string(), e.what());
  } catch (const IoError& e) {
    fail<UsageError>("hardware file: {}", e.message());
  }
  return hardware_from_json(json, path.string());
}

OpRates rates_at(const Hardware& h, double width) {
  const auto above = std::find_if(h.ops.begin(), h.ops.end(), [&](const OpRates& o) { return o.width >= width; });
  if (above == h.ops.begin()) return h.ops.front();
  if (above == h.ops.end()) return h.ops.back();
  const OpRates &low = *(above - 1), &high = *above;
  const double t = (std::log(width) - std::log(low.width)) / (std::log(high.width) - std::log(low.width));
  const auto between = [&](double OpRates::*f) { return low.*f + t * (high.*f - low.*f); };
  return {width,
          between(&OpRates::dense),
          between(&OpRates::experts),
          between(&OpRates::head),
          between(&OpRates::attention),
          between(&OpRates::rows),
          between(&OpRates::optimizer),
          between(&OpRates::layer_s)};
}

}  // namespace emox
