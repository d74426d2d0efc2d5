#include "launch/config/fields.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "launch/config/aliases.h"
#include "launch/config/nearest.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

template <typename... F>
struct Overloaded : F... {
  using F::operator()...;
};
template <typename... F>
Overloaded(F...) -> Overloaded<F...>;

template <typename T>
std::optional<T> parse_number(const std::string& text) {
  T value{};
  const char* end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, value);
  if (result.ec != std::errc{} || result.ptr != end) return std::nullopt;
  return value;
}

// Digits, or a whole number written as 5e9.
std::optional<std::int64_t> parse_integer(const std::string& text) {
  if (const auto whole = parse_number<std::int64_t>(text)) return whole;
  const auto real = parse_number<double>(text);
  constexpr double kExact = 9007199254740992.0;  // 2^53: below it a double holds every integer
  if (!real || !(std::fabs(*real) <= kExact) || *real != std::floor(*real)) return std::nullopt;
  return static_cast<std::int64_t>(*real);
}

constexpr const char* kAuto = "auto";
bool is_auto(const Field::Integer& t) { return t.automatic && *t.value == 0; }
bool is_auto(const Field::Real& t) { return t.automatic && *t.value == 0; }

std::vector<std::string> strings(std::span<const char* const> names) { return {names.begin(), names.end()}; }

// "a, b or c"
std::string one_of(std::span<const char* const> names) {
  return fmt::format("{} or {}", fmt::join(names.first(names.size() - 1), ", "), names.back());
}

// Collects fields while a config walks its keys.
struct Collector {
  std::vector<Field> fields;
  std::vector<std::string> sections;

  void section(const char* name) { sections.emplace_back(name); }
  void integer(const char* key, std::int64_t& value, std::int64_t min, std::int64_t max, const char* help) {
    fields.emplace_back(sections.back(), key, help, Field::Integer{&value, min, max});
  }
  void automatic(const char* key, std::int64_t& value, std::int64_t min, std::int64_t max, const char* help) {
    fields.emplace_back(sections.back(), key, help, Field::Integer{&value, min, max, true});
  }
  void real(const char* key, double& value, double min, double max, const char* help) {
    fields.emplace_back(sections.back(), key, help, Field::Real{&value, min, max});
  }
  void automatic(const char* key, double& value, double min, double max, const char* help) {
    fields.emplace_back(sections.back(), key, help, Field::Real{&value, min, max, true});
  }
  void flag(const char* key, bool& value, const char* help) {
    fields.emplace_back(sections.back(), key, help, Field::Flag{&value});
  }
  void text(const char* key, std::string& value, const char* help) {
    fields.emplace_back(sections.back(), key, help, Field::Text{&value});
  }
  void list(const char* key, std::vector<std::string>& values, const char* help) {
    fields.emplace_back(sections.back(), key, help, Field::List{&values});
  }
  template <typename E, std::size_t N>
  void choice(const char* key, E& value, const char* const (&names)[N], const char* help) {
    const auto get = [](const void* p) { return idx(*static_cast<const E*>(p)); };
    const auto set = [](void* p, std::size_t index) { *static_cast<E*>(p) = static_cast<E>(index); };
    fields.emplace_back(sections.back(), key, help, Field::Choice{&value, names, get, set});
  }
};

Collector collect(Recipe& recipe) {
  Collector collector;
  recipe.visit(collector);
  return collector;
}

}  // namespace

void Field::set(const std::string& text, const std::string& origin) const {
  std::visit(
      Overloaded{[&](const Integer& t) { set_integer(t, text, origin); },
                 [&](const Real& t) { set_real(t, text, origin); }, [&](const Flag& t) { set_flag(t, text, origin); },
                 [&](const Text& t) { *t.value = text; }, [&](const List& t) { t.values->push_back(text); },
                 [&](const Choice& t) { set_choice(t, text, origin); }},
      target_);
}

void Field::set_integer(const Integer& target, const std::string& text, const std::string& origin) const {
  if (target.automatic && text == kAuto) {
    *target.value = 0;
    return;
  }
  const auto value = parse_integer(text);
  require<UsageError>(value.has_value(), "{} = {} ({}) is not an integer: use {}", name(), text, origin, allowed());
  require<UsageError>(
      *value >= target.min && *value <= target.max, "{} = {} ({}) is out of range: use {}", name(), text, origin,
      target.max == kMaxCount && *value > target.max ? fmt::format("at most {}", target.max) : allowed());
  *target.value = *value;
}

void Field::set_real(const Real& target, const std::string& text, const std::string& origin) const {
  if (target.automatic && text == kAuto) {
    *target.value = 0;
    return;
  }
  const auto value = parse_number<double>(text);
  require<UsageError>(value.has_value(), "{} = {} ({}) is not a number: use {}", name(), text, origin, allowed());
  // Written so that "nan" fails too.
  require<UsageError>(*value >= target.min && *value <= target.max, "{} = {} ({}) is out of range: use {}", name(),
                      text, origin, allowed());
  *target.value = *value;
}

void Field::set_flag(const Flag& target, const std::string& text, const std::string& origin) const {
  const bool yes = text == "true" || text == "yes" || text == "on" || text == "1";
  const bool no = text == "false" || text == "no" || text == "off" || text == "0";
  require<UsageError>(yes || no, "{} = {} ({}) is neither true nor false: use {}", name(), text, origin, allowed());
  *target.value = yes;
}

void Field::set_choice(const Choice& target, const std::string& text, const std::string& origin) const {
  const auto found = std::find(target.names.begin(), target.names.end(), text);
  if (found == target.names.end()) {
    const std::string_view meant = value_of_alias(text);
    const bool known = std::find(target.names.begin(), target.names.end(), meant) != target.names.end();
    fail<UsageError>("{} = {} ({}) is not one of {}: did you mean {}?", name(), text, origin, allowed(),
                     known ? std::string(meant) : nearest(text, strings(target.names)));
  }
  target.set(target.value, idx(found - target.names.begin()));
}

void Field::clear_list() const {
  if (const auto* list = std::get_if<List>(&target_)) list->values->clear();
}

std::vector<std::string> Field::values() const {
  using Strings = std::vector<std::string>;
  const auto integer = [](const Integer& t) { return Strings{is_auto(t) ? kAuto : std::to_string(*t.value)}; };
  return std::visit(
      Overloaded{integer, [](const Real& t) { return Strings{is_auto(t) ? kAuto : fmt::format("{}", *t.value)}; },
                 [](const Flag& t) { return Strings{*t.value ? "true" : "false"}; },
                 [](const Text& t) { return Strings{*t.value}; }, [](const List& t) { return *t.values; },
                 [](const Choice& t) { return Strings{t.names[t.get(t.value)]}; }},
      target_);
}

nlohmann::ordered_json Field::json() const {
  using Json = nlohmann::ordered_json;
  return std::visit(
      Overloaded{[](const Integer& t) { return is_auto(t) ? Json(kAuto) : Json(*t.value); },
                 [](const Real& t) { return is_auto(t) ? Json(kAuto) : Json(*t.value); },
                 [](const Flag& t) { return Json(*t.value); }, [](const Text& t) { return Json(*t.value); },
                 [](const List& t) { return Json(*t.values); },
                 [](const Choice& t) { return Json(t.names[t.get(t.value)]); }},
      target_);
}

std::string Field::allowed() const {
  // The limit that stands for "any count" would only be noise.
  const auto range = [](const Integer& t) {
    return fmt::format("{}{}", t.automatic ? "auto, or " : "",
                       t.max == kMaxCount ? fmt::format("{} or more", t.min) : fmt::format("{} to {}", t.min, t.max));
  };
  return std::visit(
      Overloaded{
          range, [](const Real& t) { return fmt::format("{}{} to {}", t.automatic ? "auto, or " : "", t.min, t.max); },
          [](const Flag&) { return std::string("true or false"); }, [](const Text&) { return std::string("text"); },
          [](const List&) { return std::string("text, repeatable"); }, [](const Choice& t) { return one_of(t.names); }},
      target_);
}

std::vector<Field> fields_of(Recipe& recipe) { return collect(recipe).fields; }

std::vector<std::string> section_names() {
  Recipe recipe;
  return collect(recipe).sections;
}

std::vector<std::string> key_names() {
  Recipe recipe;
  std::vector<std::string> names;
  for (const Field& field : fields_of(recipe)) names.push_back(field.name());
  return names;
}

}  // namespace emox
