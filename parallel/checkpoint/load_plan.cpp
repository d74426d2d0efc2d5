#include "parallel/checkpoint/load_plan.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "parallel/checkpoint/manifest.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

using nlohmann::json;
using Index = std::vector<const ManifestTensor*>;

/// What one rank wants, without its memory.
struct Wanted {
  std::string name, role, dtype;
  std::vector<std::int64_t> shape;
  std::int64_t begin = 0, end = 0;
};

std::vector<std::int64_t> extents_of(const Shape& shape) {
  std::vector<std::int64_t> extents;
  for (int i = 0; i < shape.rank(); ++i) extents.push_back(shape[i]);
  return extents;
}

std::string text_of(const std::vector<std::int64_t>& extents) { return fmt::format("[{}]", fmt::join(extents, ", ")); }

std::vector<Wanted> wanted_from(const std::string& text) {
  std::vector<Wanted> all;
  for (const json& j : json::parse(text))
    all.push_back({j.at(0), j.at(1), j.at(2), j.at(3).get<std::vector<std::int64_t>>(), j.at(4), j.at(5)});
  return all;
}

/// The saved pieces of the array that `w` is a part of, in order.
std::span<const ManifestTensor* const> saved_pieces(const Index& index, const Wanted& w, const std::string& path) {
  const auto array = std::tie(w.name, w.role);
  const auto array_of = [](const ManifestTensor* t) { return std::tie(t->name, t->role); };
  const auto first = std::lower_bound(index.begin(), index.end(), array,
                                      [&](const auto* t, const auto& a) { return array_of(t) < a; });
  const auto last =
      std::upper_bound(first, index.end(), array, [&](const auto& a, const auto* t) { return a < array_of(t); });
  require<MisfitError>(first != last, "the checkpoint {} has no {} ({})", path, w.name, w.role);
  const ManifestTensor& t = **first;
  const std::vector<std::int64_t> shape = extents_of(t.shape);
  require<MisfitError>(shape == w.shape, "{} ({}) is {} in the checkpoint {}, {} here", w.name, w.role, text_of(shape),
                       path, text_of(w.shape));
  require<MisfitError>(name_of(t.dtype) == w.dtype, "{} ({}) holds {} in the checkpoint {}, {} here", w.name, w.role,
                       name_of(t.dtype), path, w.dtype);
  return {first, last};
}

/// A stretch of a file that a piece takes.
struct Taken {
  std::int64_t begin, bytes;  ///< in the file
  int to;
  std::size_t piece;
  std::int64_t at;
};
using TakenOfFile = std::map<std::string, std::vector<Taken>>;

void take(TakenOfFile& taken, const Index& index, const Wanted& w, int to, std::size_t piece, const std::string& path) {
  const auto saved = saved_pieces(index, w, path);
  if (w.begin == w.end) return;
  // The first that ends behind the wanted beginning; the manifest's pieces follow each other without a gap.
  auto at = std::upper_bound(saved.begin(), saved.end(), w.begin,
                             [](std::int64_t begin, const ManifestTensor* t) { return begin < t->end; });
  for (; at != saved.end() && (*at)->begin < w.end; ++at) {
    const ManifestTensor& t = **at;
    const auto item = static_cast<std::int64_t>(size_of(t.dtype));
    const std::int64_t begin = std::max(w.begin, t.begin), end = std::min(w.end, t.end);
    taken[t.file].push_back(
        {t.offset + (begin - t.begin) * item, (end - begin) * item, to, piece, (begin - w.begin) * item});
  }
}

TakenOfFile taken_by(const Manifest& manifest, const std::string& checkpoint, const std::vector<std::string>& wanted) {
  const Index index = in_order(manifest.tensors);
  TakenOfFile taken;
  for (std::size_t r = 0; r < wanted.size(); ++r) {
    const std::vector<Wanted> pieces = wanted_from(wanted[r]);
    for (std::size_t i = 0; i < pieces.size(); ++i) take(taken, index, pieces[i], static_cast<int>(r), i, checkpoint);
  }
  return taken;
}

json datasets_of(std::vector<const ManifestTensor*> tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const auto* a, const auto* b) { return a->offset < b->offset; });
  json datasets = json::array();
  for (const ManifestTensor* t : tensors)
    if (t->begin != t->end)
      datasets.push_back({t->offset, bytes_of(*t), t->checksum,
                          fmt::format("{} ({}), elements [{}, {})", t->name, t->role, t->begin, t->end)});
  return datasets;
}

}  // namespace

std::string text_of_wanted(std::span<const CheckpointPiece> wanted) {
  json all = json::array();
  for (const CheckpointPiece& p : wanted)
    all.push_back({p.name, p.role, std::string(name_of(p.view.dtype())), extents_of(p.shape), p.begin, p.end});
  return all.dump();
}

std::vector<std::string> plan_loads(const Manifest& manifest, const std::string& checkpoint,
                                    const std::vector<std::string>& wanted, bool only_needed) {
  TakenOfFile taken = taken_by(manifest, checkpoint, wanted);
  std::map<std::string, std::vector<const ManifestTensor*>> tensors;
  for (const ManifestTensor& t : manifest.tensors) tensors[t.file].push_back(&t);

  const std::size_t ranks = wanted.size();
  std::vector<json> plans(ranks, {{"files", json::array()}, {"out", json::array()}, {"in", json::array()}});
  std::vector<std::int64_t> streams(ranks, 0);
  bool exchanges = false;
  for (std::size_t f = 0; f < manifest.files.size(); ++f) {
    const ManifestFile& file = manifest.files[f];
    std::vector<Taken>& of_file = taken[file.name];
    if (only_needed && of_file.empty()) continue;
    const std::size_t reader = f % ranks;
    plans[reader]["files"].push_back({file.name, file.bytes, file.checksum, datasets_of(tensors[file.name])});
    std::stable_sort(of_file.begin(), of_file.end(), [](const Taken& a, const Taken& b) { return a.begin < b.begin; });
    for (const Taken& t : of_file) {
      const std::int64_t begin = streams[reader] + t.begin;
      plans[reader]["out"].push_back({begin, t.bytes, t.to, t.piece, t.at});
      if (idx(t.to) == reader) continue;
      exchanges = true;
      plans[idx(t.to)]["in"].push_back({reader, begin, t.bytes, t.piece, t.at});
    }
    streams[reader] += file.bytes;
  }
  std::vector<std::string> texts;
  for (json& plan : plans) {
    plan["longest"] = *std::max_element(streams.begin(), streams.end());
    plan["exchanges"] = exchanges;
    texts.push_back(plan.dump());
  }
  return texts;
}

std::vector<std::string> needed_files(const Manifest& manifest, const std::string& checkpoint,
                                      const std::vector<std::string>& wanted) {
  std::vector<std::string> names;
  for (const auto& [name, pieces] : taken_by(manifest, checkpoint, wanted)) names.push_back(name);
  return names;
}

LoadPlan load_plan_from(const std::string& text) {
  const json j = json::parse(text);
  LoadPlan plan;
  plan.longest = j.at("longest");
  plan.exchanges = j.at("exchanges");
  for (const json& f : j.at("files")) {
    LoadedFile file{{f.at(0), f.at(1), f.at(2)}, {}};
    for (const json& d : f.at(3)) file.datasets.push_back({d.at(0), d.at(1), d.at(2), d.at(3)});
    plan.files.push_back(std::move(file));
  }
  for (const json& o : j.at("out")) plan.out.push_back({o.at(0), o.at(1), o.at(2), o.at(3), o.at(4)});
  for (const json& i : j.at("in")) plan.in.push_back({i.at(0), i.at(1), i.at(2), i.at(3), i.at(4)});
  // Files are dealt in turns, so the streams of the senders are interleaved; what one of them sends stays in order.
  std::stable_sort(plan.in.begin(), plan.in.end(),
                   [](const IncomingBytes& a, const IncomingBytes& b) { return a.from < b.from; });
  return plan;
}

}  // namespace emox
