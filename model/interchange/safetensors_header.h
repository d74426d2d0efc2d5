// The JSON header of a safetensors file: text to tables and back, with every check that needs no file.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "model/interchange/safetensors.h"

namespace emox {

struct SafetensorsHeader {
  std::map<std::string, SafetensorInfo> tensors;
  std::map<std::string, std::string> metadata;
};

/// Bytes of one element, 0 for an unknown type.
std::size_t safetensors_dtype_size(std::string_view dtype);
/// Bytes that a shape of this type takes. IoError for a negative extent, an unknown type or a product beyond 2^63.
std::size_t safetensors_bytes(const std::string& name, const std::string& dtype,
                              const std::vector<std::int64_t>& shape);
/// Parses and checks: the tensors cover `data_bytes` bytes without gap or overlap. IoError without the file's name.
SafetensorsHeader parse_safetensors_header(std::string_view text, std::size_t data_bytes);
/// The header's text, padded with spaces so that the data behind it is aligned to 8 bytes.
std::string safetensors_header_text(const SafetensorsHeader& header);

}  // namespace emox
