// The keys of a recipe as a flat list that can be set from and printed as text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "launch/config/recipe.h"

namespace emox {

/// One key, bound to its place in a recipe, which must outlive it.
class Field {
 public:
  struct Integer {
    std::int64_t* value;
    std::int64_t min, max;
    bool automatic = false;  ///< may be "auto", kept as 0
  };
  struct Real {
    double* value;
    double min, max;
    bool automatic = false;  ///< may be "auto", kept as 0
  };
  struct Flag {
    bool* value;
  };
  struct Text {
    std::string* value;
  };
  struct List {
    std::vector<std::string>* values;
  };
  struct Choice {
    void* value;
    std::span<const char* const> names;
    std::size_t (*get)(const void*);
    void (*set)(void*, std::size_t);
  };
  using Target = std::variant<Integer, Real, Flag, Text, List, Choice>;

  Field(std::string section, const char* key, const char* help, Target target)
      : section_(std::move(section)), key_(key), help_(help), target_(target) {}

  const std::string& section() const { return section_; }
  const std::string& key() const { return key_; }
  const std::string& help() const { return help_; }
  std::string name() const { return section_ + "." + key_; }
  bool is_list() const { return std::holds_alternative<List>(target_); }

  /// Stores the value; a list grows by one. `origin` says where the text was written, for the message of the UsageError
  /// that a wrong type or an out-of-range value raises.
  void set(const std::string& text, const std::string& origin) const;
  void clear_list() const;
  /// The values as text: one, or as many as a list has. set() of each gives the same value back, bit for bit.
  std::vector<std::string> values() const;
  nlohmann::ordered_json json() const;
  /// What may be written: "1 to 65536", "off, fixed, uniform or label", "true or false", ...
  std::string allowed() const;

 private:
  void set_integer(const Integer& target, const std::string& text, const std::string& origin) const;
  void set_real(const Real& target, const std::string& text, const std::string& origin) const;
  void set_flag(const Flag& target, const std::string& text, const std::string& origin) const;
  void set_choice(const Choice& target, const std::string& text, const std::string& origin) const;

  std::string section_, key_, help_;
  Target target_;
};

/// Every key in the order of Recipe::visit.
std::vector<Field> fields_of(Recipe& recipe);
std::vector<std::string> section_names();
/// "section.key" of every key.
std::vector<std::string> key_names();

}  // namespace emox
