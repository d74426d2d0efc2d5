// The parts of `emox checkpoint`, and how they print numbers.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/checkpoint/manifest.h"

namespace emox {

// Each takes the arguments after its name and returns an ExitCode.
int checkpoint_info(const std::vector<std::string>& args);
int checkpoint_verify(const std::vector<std::string>& args);
int checkpoint_diff(const std::vector<std::string>& args);
int checkpoint_export(const std::vector<std::string>& args);
int checkpoint_prune(const std::vector<std::string>& args);

/// At most six characters (seven with a sign): 0.0234, 1.2e-5, 12345, nan.
std::string short_number(double x);
/// 47.6 MiB
std::string size_text(std::int64_t bytes);
/// At most seven characters: 47.6M
std::string short_size(std::int64_t bytes);
/// 96x128; "scalar"
std::string shape_text(const Shape& shape);
/// [3,17]: where element `at` of the flattened array is
std::string index_text(const Shape& shape, std::int64_t at);
/// 2 h 5 min
std::string age_text(double seconds);
/// As tables show a tensor's or a family's name: without the model. and .weight that nearly all have.
std::string short_name(std::string_view name);
/// A number in JSON; what JSON cannot hold as text: "nan", "inf", "-inf".
nlohmann::ordered_json json_number(double x);
nlohmann::ordered_json json_shape(const Shape& shape);

/// How many experts of a layer are routed: those numbered from there on are shared. kAllExperts when the checkpoint
/// does not tell.
std::int64_t routed_experts_of(const Manifest& manifest);

}  // namespace emox
