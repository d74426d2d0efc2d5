// Reads JSON that must be exactly what is expected. The library's own conversions turn 1.5 into 1, true into 1 and -1
// into 2^64 - 1; these say what stands where instead: "tensors[3].begin is 1.5: not a whole number in [0, 12]".
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>
#include <vector>

namespace emox {

/// A value of a JSON text and its place in it. Does not own the value. Every failure is an IoError. A manifest has a
/// hundred thousand values, so places become text only for a message.
class StrictJson {
 public:
  /// `place` is empty for the whole text.
  StrictJson(const nlohmann::json& value, std::string place);

  /// A member; the value must be an object that has it. `key` must be a literal.
  StrictJson at(const char* key) const;
  /// The members of an array.
  std::vector<StrictJson> elements() const;
  std::string text() const;
  std::int64_t integer(std::int64_t least, std::int64_t most) const;
  std::uint64_t unsigned_integer() const;
  const nlohmann::json& json() const { return *value_; }
  std::string place() const { return place_of(place_); }

  /// Throws: the value is not `what`.
  [[noreturn]] void reject(const std::string& what) const;

 private:
  struct Place {
    std::shared_ptr<const Place> parent = nullptr;
    std::string name{};         ///< of the outermost
    const char* key = nullptr;  ///< of a member; else its index
    std::size_t index = 0;
  };
  StrictJson(const nlohmann::json& value, Place place) : value_(&value), place_(std::move(place)) {}
  static std::string place_of(const Place& place);
  std::string place_or_content() const;
  /// This value's place as the parent of others'.
  std::shared_ptr<const Place> shared_place() const;

  const nlohmann::json* value_;
  Place place_;
  mutable std::shared_ptr<const Place> shared_;
};

}  // namespace emox
