#include "runtime/telemetry/json_text.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>

namespace emox {
namespace {

// How many bytes the character at the beginning of `bytes` has; 0: they begin with no character of UTF-8.
std::size_t utf8_length(std::string_view bytes) {
  const auto at = [&](std::size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned char first = at(0);
  if (first < 0x80) return 1;
  if (first < 0xC2 || first > 0xF4) return 0;  // a continuation, an overlong form, or beyond U+10FFFF
  const std::size_t length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  if (bytes.size() < length) return 0;
  for (std::size_t i = 1; i < length; ++i)
    if (at(i) < 0x80 || at(i) > 0xBF) return 0;
  const bool overlong = (first == 0xE0 && at(1) < 0xA0) || (first == 0xF0 && at(1) < 0x90);
  const bool surrogate = first == 0xED && at(1) > 0x9F;
  const bool too_large = first == 0xF4 && at(1) > 0x8F;
  return overlong || surrogate || too_large ? 0 : length;
}

bool is_utf8(std::string_view bytes) {
  while (!bytes.empty()) {
    const std::size_t length = utf8_length(bytes);
    if (length == 0) return false;
    bytes.remove_prefix(length);
  }
  return true;
}

// Each byte that belongs to no character as four: \xff.
std::string utf8_or_escaped(std::string_view bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  while (!bytes.empty()) {
    const std::size_t length = utf8_length(bytes);
    if (length > 0) {
      text += bytes.substr(0, length);
    } else {
      const auto byte = static_cast<unsigned char>(bytes.front());
      text += {'\\', 'x', kDigits[byte / 16], kDigits[byte % 16]};
    }
    bytes.remove_prefix(length > 0 ? length : 1);
  }
  return text;
}

template <typename Json>
bool is_text(const Json& value) {
  if (value.is_string()) return is_utf8(value.template get_ref<const std::string&>());
  if (value.is_array()) return std::all_of(value.begin(), value.end(), is_text<Json>);
  if (!value.is_object()) return true;
  for (const auto& [key, entry] : value.items())
    if (!is_utf8(key) || !is_text(entry)) return false;
  return true;
}

template <typename Json>
Json escaped(const Json& value) {
  if (value.is_string()) return utf8_or_escaped(value.template get_ref<const std::string&>());
  if (value.is_array()) {
    Json out = Json::array();
    for (const Json& entry : value) out.push_back(escaped(entry));
    return out;
  }
  if (!value.is_object()) return value;
  Json out = Json::object();
  for (const auto& [key, entry] : value.items()) out[utf8_or_escaped(key)] = escaped(entry);
  return out;
}

template <typename Json>
std::string text_of(const Json& value, int indent) {
  return is_text(value) ? value.dump(indent) : escaped(value).dump(indent);
}

}  // namespace

std::string json_text(const nlohmann::json& value, int indent) { return text_of(value, indent); }
std::string json_text(const nlohmann::ordered_json& value, int indent) { return text_of(value, indent); }

}  // namespace emox
