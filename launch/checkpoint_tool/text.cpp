#include <fmt/format.h>

#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "launch/checkpoint_tool/checkpoint_tool.h"
#include "launch/config/recipe_file.h"
#include "parallel/checkpoint/arrays.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

struct Size {
  double value;
  char unit;
};

Size size_of_bytes(std::int64_t bytes) {
  constexpr std::string_view kUnits = "BKMGTPE";
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; value >= 1023.95; value /= 1024) ++unit;  // what would be printed as 1024.0
  return {value, kUnits[unit]};
}

}  // namespace

std::string short_number(double x) {
  if (std::abs(x) >= 1000 && std::abs(x) < 99999) return fmt::format("{:.0f}", x);
  for (const int digits : {3, 2})
    if (std::string text = fmt::format("{:.{}g}", x, digits); text.size() <= 6) return text;
  std::string text;
  for (const int digits : {1, 0}) {
    text = fmt::format("{:.{}e}", x, digits);
    // 1.2e-05 -> 1.2e-5
    const std::size_t exponent = text.find('e') + 2;
    if (text[exponent] == '0') text.erase(exponent, 1);
    if (text[exponent - 1] == '+') text.erase(exponent - 1, 1);
    if (text.size() <= 6) break;
  }
  return text;
}

std::string size_text(std::int64_t bytes) {
  const Size s = size_of_bytes(bytes);
  if (s.unit == 'B') return fmt::format("{} B", bytes);
  return fmt::format("{:.1f} {}iB", s.value, s.unit);
}

std::string short_size(std::int64_t bytes) {
  const Size s = size_of_bytes(bytes);
  return s.unit == 'B' ? fmt::format("{}", bytes) : fmt::format("{:.1f}{}", s.value, s.unit);
}

std::string shape_text(const Shape& shape) {
  std::string text;
  for (int i = 0; i < shape.rank(); ++i) text += fmt::format("{}{}", i == 0 ? "" : "x", shape[i]);
  return text.empty() ? "scalar" : text;
}

std::string index_text(const Shape& shape, std::int64_t at) {
  std::string text;
  for (int i = shape.rank() - 1; i >= 0; --i) {
    text = fmt::format("{}{}{}", at % shape[i], text.empty() ? "" : ",", text);
    at /= shape[i];
  }
  return "[" + text + "]";
}

std::string age_text(double seconds) {
  const auto s = static_cast<std::int64_t>(seconds);
  if (s < 60) return fmt::format("{} s", s);
  if (s < 3600) return fmt::format("{} min", s / 60);
  if (s < 86400) return fmt::format("{} h {} min", s / 3600, s % 3600 / 60);
  return fmt::format("{} d {} h", s / 86400, s % 86400 / 3600);
}

std::string short_name(std::string_view name) {
  constexpr std::string_view kFront = "model.", kBack = ".weight";
  if (name.starts_with(kFront)) name.remove_prefix(kFront.size());
  if (name.ends_with(kBack)) name.remove_suffix(kBack.size());
  return std::string(name);
}

nlohmann::ordered_json json_number(double x) {
  if (std::isfinite(x)) return x;
  return fmt::format("{}", x);
}

nlohmann::ordered_json json_shape(const Shape& shape) {
  auto dims = nlohmann::ordered_json::array();
  for (int i = 0; i < shape.rank(); ++i) dims.push_back(shape[i]);
  return dims;
}

std::int64_t routed_experts_of(const Manifest& manifest) {
  if (manifest.placement.is_object() && !manifest.placement.at("table").empty())
    return static_cast<std::int64_t>(manifest.placement.at("table").at(0).size());
  try {
    const Recipe recipe = parse_recipe(manifest.recipe, "the recipe in the checkpoint");
    if (recipe.model.is_moe()) return recipe.model.routed_experts();
  } catch (const UsageError&) {
    // A recipe of another version: all experts then count as routed.
  }
  return kAllExperts;
}

}  // namespace emox
