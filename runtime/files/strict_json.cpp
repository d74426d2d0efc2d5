#include "runtime/files/strict_json.h"

#include <nlohmann/json.hpp>

#include "runtime/core/error.h"

namespace emox {

StrictJson::StrictJson(const nlohmann::json& value, std::string place) : value_(&value) {
  place_.name = std::move(place);
}

std::string StrictJson::place_of(const Place& place) {
  if (!place.parent) return place.name;
  const std::string outer = place_of(*place.parent);
  if (place.key == nullptr) return fmt::format("{}[{}]", outer, place.index);
  return outer.empty() ? place.key : outer + "." + place.key;
}

std::string StrictJson::place_or_content() const {
  const std::string text = place();
  return text.empty() ? "the content" : text;
}

std::shared_ptr<const StrictJson::Place> StrictJson::shared_place() const {
  if (!shared_) shared_ = std::make_shared<const Place>(place_);
  return shared_;
}

void StrictJson::reject(const std::string& what) const {
  constexpr std::size_t kLongest = 60;
  std::string value = value_->dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (value.size() > kLongest) value = value.substr(0, kLongest) + "...";
  fail<IoError>("{} is {}: not {}", place_or_content(), value, what);
}

StrictJson StrictJson::at(const char* key) const {
  if (!value_->is_object()) reject(fmt::format("an object with \"{}\"", key));
  const auto found = value_->find(key);
  if (found == value_->end()) fail<IoError>("{} has no \"{}\"", place_or_content(), key);
  return {*found, Place{shared_place(), "", key, 0}};
}

std::vector<StrictJson> StrictJson::elements() const {
  if (!value_->is_array()) reject("a list");
  std::vector<StrictJson> list;
  list.reserve(value_->size());
  for (const nlohmann::json& v : *value_) list.push_back({v, Place{shared_place(), "", nullptr, list.size()}});
  return list;
}

std::string StrictJson::text() const {
  if (!value_->is_string()) reject("a text");
  return value_->get<std::string>();
}

std::int64_t StrictJson::integer(std::int64_t least, std::int64_t most) const {
  // The library keeps whole numbers that are not negative as unsigned ones, which may be larger than any int64.
  const bool fits = value_->is_number_integer() &&
                    (!value_->is_number_unsigned() || value_->get<std::uint64_t>() <= std::uint64_t{INT64_MAX});
  const std::int64_t n = fits ? value_->get<std::int64_t>() : 0;
  if (!fits || n < least || n > most)
    reject(most == INT64_MAX ? fmt::format("a whole number of at least {}", least)
                             : fmt::format("a whole number in [{}, {}]", least, most));
  return n;
}

std::uint64_t StrictJson::unsigned_integer() const {
  // A number that a program put in, and did not parse, may be a signed one that is not negative.
  if (!value_->is_number_unsigned()) return static_cast<std::uint64_t>(integer(0, INT64_MAX));
  return value_->get<std::uint64_t>();
}

}  // namespace emox
