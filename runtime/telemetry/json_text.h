// JSON as text, whatever bytes its strings hold.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace emox {

/// As dump(indent), but bytes in keys and values that are no UTF-8 are written as \xff where dump() throws. Keys that
/// would become equal keep the last value.
std::string json_text(const nlohmann::json& value, int indent = -1);
std::string json_text(const nlohmann::ordered_json& value, int indent = -1);

}  // namespace emox
