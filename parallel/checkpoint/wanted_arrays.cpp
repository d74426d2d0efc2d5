// Whether a checkpoint's arrays are those of a model: a part of arrays.h.
#include "parallel/checkpoint/arrays.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

namespace emox {
namespace {

using Array = std::pair<std::string, std::string>;  // name, role

// model.layers.*.mlp.experts.*.up_proj.weight
std::string without_numbers(const std::string& name) {
  std::string out;
  for (std::size_t begin = 0; begin <= name.size();) {
    const std::size_t end = std::min(name.find('.', begin), name.size());
    const std::string part = name.substr(begin, end - begin);
    const bool number = !part.empty() && part.find_first_not_of("0123456789") == std::string::npos;
    out += (begin > 0 ? "." : "") + (number ? "*" : part);
    begin = end + 1;
  }
  return out;
}

// In the order of the lines.
enum class Difference { Shape, NotSaved, NotWanted };

class Kinds {
 public:
  void add(Difference difference, const Array& array, const std::string& saved, const std::string& wanted) {
    Kind& kind = kinds_[{difference, without_numbers(array.first), array.second, saved, wanted}];
    if (kind.count++ == 0) kind.first = array.first;
  }
  std::vector<std::string> lines(std::size_t most) const {
    std::vector<std::string> lines;
    for (const auto& [key, kind] : kinds_) {
      const auto& [difference, pattern, role, saved, wanted] = key;
      std::string name = kind.count == 1 ? kind.first : fmt::format("{} ({} of them)", pattern, kind.count);
      if (role != "weight") name += fmt::format(" ({})", role);
      lines.push_back(fmt::format("{}: {} in the checkpoint, {} here", name, saved, wanted));
    }
    if (lines.size() > most) {
      const std::size_t more = lines.size() - (most - 1);
      lines.resize(most - 1);
      lines.push_back(fmt::format("... and {} more such lines", more));
    }
    return lines;
  }

 private:
  struct Kind {
    std::string first;
    int count = 0;
  };
  std::map<std::tuple<Difference, std::string, std::string, std::string, std::string>, Kind> kinds_;
};

}  // namespace

std::vector<std::string> describe_other_arrays(std::span<const ManifestTensor> saved,
                                               std::span<const WantedArray> wanted, std::size_t most_lines) {
  std::map<Array, Shape> have, need;
  std::set<std::string> roles, changed;  // changed: names of weights that are reported; their moments are not as well
  for (const WantedArray& a : wanted) {
    need[{a.name, a.role}] = a.shape;
    roles.insert(a.role);
  }
  for (const ManifestTensor& t : saved)
    if (roles.contains(t.role)) have[{t.name, t.role}] = t.shape;
  const auto shape_in = [](const std::map<Array, Shape>& arrays, const Array& a) -> std::optional<Shape> {
    const auto found = arrays.find(a);
    return found == arrays.end() ? std::nullopt : std::optional(found->second);
  };
  std::set<Array> all;
  for (const auto* arrays : {&have, &need})
    for (const auto& [array, shape] : *arrays) all.insert(array);
  Kinds kinds;
  for (const bool weights : {true, false})
    for (const Array& array : all) {
      if ((array.second == "weight") != weights || (!weights && changed.contains(array.first))) continue;
      const auto was = shape_in(have, array), is = shape_in(need, array);
      if (was == is) continue;
      if (weights) changed.insert(array.first);
      kinds.add(was && is ? Difference::Shape
                : is      ? Difference::NotSaved
                          : Difference::NotWanted,
                array, was ? was->str() : "nothing", is ? is->str() : "nothing");
    }
  return kinds.lines(most_lines);
}

}  // namespace emox
