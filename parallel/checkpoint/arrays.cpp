#include "parallel/checkpoint/arrays.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <set>
#include <tuple>
#include <unordered_map>

#include "parallel/checkpoint/manifest.h"

namespace emox {
namespace {

std::vector<std::string_view> parts_of(std::string_view name) {
  std::vector<std::string_view> parts;
  for (;;) {
    const std::size_t dot = name.find('.');
    parts.push_back(name.substr(0, dot));
    if (dot == std::string_view::npos) return parts;
    name.remove_prefix(dot + 1);
  }
}

std::optional<std::int64_t> number_of(std::string_view part) {
  std::int64_t n = 0;
  const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), n);
  if (error != std::errc{} || end != part.data() + part.size() || n < 0) return std::nullopt;
  return n;
}

/// What the * of a family's pattern stand for in a member's name.
std::vector<std::int64_t> numbers_of(const std::string& name, const std::string& pattern) {
  const auto parts = parts_of(name), stars = parts_of(pattern);
  std::vector<std::int64_t> numbers;
  for (std::size_t i = 0; i < parts.size(); ++i)
    if (stars[i] == "*") numbers.push_back(*number_of(parts[i]));
  return numbers;
}

/// Extents of the members' grid, when they fill one.
std::string count_of(const ArrayFamily& family, const std::vector<SavedArray>& arrays) {
  std::vector<std::set<std::int64_t>> extents;
  for (const std::size_t m : family.members) {
    const auto numbers = numbers_of(arrays[m].name, family.pattern);
    extents.resize(numbers.size());
    for (std::size_t i = 0; i < numbers.size(); ++i) extents[i].insert(numbers[i]);
  }
  std::size_t product = 1;
  std::string text;
  for (const auto& extent : extents) {
    product *= extent.size();
    text += fmt::format("{}{}", text.empty() ? "" : "x", extent.size());
  }
  return product == family.members.size() && !text.empty() ? text : fmt::format("{}", family.members.size());
}

}  // namespace

std::string SavedArray::title() const { return role == "weight" ? name : fmt::format("{} ({})", name, role); }

std::vector<SavedArray> arrays_of(const Manifest& manifest) {
  std::vector<SavedArray> arrays;
  for (const ManifestTensor* t : in_order(manifest.tensors)) {
    if (arrays.empty() || arrays.back().name != t->name || arrays.back().role != t->role)
      arrays.push_back({t->name, t->role, t->dtype, t->shape, {}});
    arrays.back().pieces.push_back(t);
  }
  // A weight before its moments.
  const auto moment = [](const SavedArray& a) { return a.role == "weight" ? "" : a.role.c_str(); };
  std::sort(arrays.begin(), arrays.end(), [&](const SavedArray& a, const SavedArray& b) {
    if (a.name != b.name) return natural_less(a.name, b.name);
    return std::string_view(moment(a)) < std::string_view(moment(b));
  });
  return arrays;
}

std::vector<std::string> files_of(const std::vector<SavedArray>& arrays) {
  std::set<std::string> names;
  for (const SavedArray& a : arrays)
    for (const ManifestTensor* piece : a.pieces) names.insert(piece->file);
  return {names.begin(), names.end()};
}

std::optional<ExpertPlace> expert_of(std::string_view name) {
  ExpertPlace place{-1, -1};
  const auto parts = parts_of(name);
  for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
    const auto number = number_of(parts[i + 1]);
    if (!number) continue;
    if (parts[i] == "layers") place.layer = *number;
    if (parts[i] == "experts") place.expert = *number;
  }
  if (place.layer < 0 || place.expert < 0) return std::nullopt;
  return place;
}

bool natural_less(std::string_view a, std::string_view b) {
  const auto x = parts_of(a), y = parts_of(b);
  for (std::size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
    if (x[i] == y[i]) continue;
    const auto m = number_of(x[i]), n = number_of(y[i]);
    if (m && n && *m != *n) return *m < *n;
    if (m.has_value() != n.has_value()) return m.has_value();
    return x[i] < y[i];
  }
  return x.size() < y.size();
}

std::string family_of(std::string_view name, std::int64_t routed_experts) {
  std::string pattern;
  std::string_view before;
  for (const std::string_view part : parts_of(name)) {
    const auto number = number_of(part);
    const bool shared = before == "experts" && number && *number >= routed_experts;
    pattern += fmt::format("{}{}", pattern.empty() ? "" : ".", number && !shared ? std::string_view("*") : part);
    before = part;
  }
  return pattern;
}

std::vector<ArrayFamily> families_of(const std::vector<SavedArray>& arrays, std::int64_t routed_experts) {
  std::vector<ArrayFamily> families;
  std::unordered_map<std::string, std::size_t> places;
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    const SavedArray& a = arrays[i];
    const std::string pattern = family_of(a.name, routed_experts);
    const std::string key = fmt::format("{} {} {} {}", pattern, a.role, name_of(a.dtype), a.shape.str());
    const auto [at, added] = places.try_emplace(key, families.size());
    if (added) families.push_back({pattern, a.role, a.dtype, a.shape, {}, ""});
    families[at->second].members.push_back(i);
  }
  for (ArrayFamily& f : families) f.count = count_of(f, arrays);
  return families;
}

}  // namespace emox
