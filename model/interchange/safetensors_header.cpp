#include "model/interchange/safetensors_header.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

using nlohmann::json;

constexpr const char* kMetadata = "__metadata__";

/// Parses text, refusing a key that comes twice in one object: the JSON library would silently keep the last.
json parse_unique(std::string_view text) {
  std::vector<std::set<std::string>> keys;
  const auto callback = [&keys](int, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key)
      require<IoError>(keys.back().insert(value.get<std::string>()).second, "\"{}\" comes twice in its header",
                       value.get<std::string>());
    return true;
  };
  try {
    return json::parse(text, callback);
  } catch (const json::exception& e) {
    fail<IoError>("its header is not JSON: {}", e.what());
  }
}

/// A count in the header; the library would convert 1.5 and -1 without a word.
std::uint64_t count_of(const json& j) {
  require<IoError>(j.is_number_unsigned(), "{} in its header is not a count", j.dump());
  return j.get<std::uint64_t>();
}

SafetensorInfo parse_tensor(const std::string& name, const json& j) {
  SafetensorInfo info;
  info.dtype = j.at("dtype").get<std::string>();
  const json& shape = j.at("shape");
  const json& offsets = j.at("data_offsets");
  require<IoError>(shape.is_array() && offsets.is_array() && offsets.size() == 2,
                   "tensor {} needs a shape and two data_offsets in its header", name);
  for (const json& extent : shape) info.shape.push_back(static_cast<std::int64_t>(count_of(extent)));
  info.begin = count_of(offsets[0]);
  info.end = count_of(offsets[1]);
  return info;
}

void check_extent(const std::string& name, const SafetensorInfo& info, std::size_t data_bytes) {
  require<IoError>(info.begin <= info.end && info.end <= data_bytes,
                   "tensor {} lies at bytes {} to {} of the data, which has {}", name, info.begin, info.end,
                   data_bytes);
  const std::size_t wanted = safetensors_bytes(name, info.dtype, info.shape);
  require<IoError>(info.end - info.begin == wanted, "tensor {} has {} bytes, its shape and type {} need {}", name,
                   info.end - info.begin, info.dtype, wanted);
}

/// The format allows neither overlap nor gaps: one byte means one thing.
void check_tiling(const std::map<std::string, SafetensorInfo>& tensors, std::size_t data_bytes) {
  std::vector<std::pair<const std::string*, const SafetensorInfo*>> sorted;
  for (const auto& [name, info] : tensors) sorted.emplace_back(&name, &info);
  std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second->begin, a.second->end) < std::pair(b.second->begin, b.second->end);
  });
  std::size_t covered = 0;
  for (const auto& [name, info] : sorted) {
    require<IoError>(info->begin >= covered, "tensor {} overlaps another: it begins at byte {}, others end at {}",
                     *name, info->begin, covered);
    require<IoError>(info->begin == covered, "bytes {} to {} before tensor {} belong to no tensor", covered,
                     info->begin, *name);
    covered = info->end;
  }
  require<IoError>(covered == data_bytes, "its tensors end at byte {} of the data, which has {}", covered, data_bytes);
}

}  // namespace

std::size_t safetensors_dtype_size(std::string_view dtype) {
  static const std::map<std::string_view, std::size_t> sizes = {
      {"F64", 8}, {"I64", 8}, {"U64", 8}, {"F32", 4}, {"I32", 4},  {"U32", 4},     {"F16", 2},    {"BF16", 2},
      {"I16", 2}, {"U16", 2}, {"I8", 1},  {"U8", 1},  {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}};
  const auto found = sizes.find(dtype);
  return found == sizes.end() ? 0 : found->second;
}

std::size_t safetensors_bytes(const std::string& name, const std::string& dtype,
                              const std::vector<std::int64_t>& shape) {
  std::size_t bytes = safetensors_dtype_size(dtype);
  require<IoError>(bytes != 0, "tensor {} has the unknown type \"{}\"", name, dtype);
  for (const std::int64_t extent : shape) {
    require<IoError>(extent >= 0, "tensor {} has an extent of {}", name, extent);
    if (extent == 0) return 0;
    require<IoError>(bytes <= idx(std::numeric_limits<std::int64_t>::max() / extent),
                     "tensor {} has more than 2^63 bytes", name);
    bytes *= idx(extent);
  }
  return bytes;
}

SafetensorsHeader parse_safetensors_header(std::string_view text, std::size_t data_bytes) {
  const json j = parse_unique(text);
  require<IoError>(j.is_object(), "its header is not a JSON object");
  SafetensorsHeader header;
  for (const auto& [name, value] : j.items()) {
    try {
      if (name == kMetadata)
        value.get_to(header.metadata);
      else
        header.tensors[name] = parse_tensor(name, value);
    } catch (const json::exception& e) {
      fail<IoError>("its header's entry {} cannot be understood: {}", name, e.what());
    }
  }
  for (const auto& [name, info] : header.tensors) check_extent(name, info, data_bytes);
  check_tiling(header.tensors, data_bytes);
  return header;
}

std::string safetensors_header_text(const SafetensorsHeader& header) {
  json j = json::object();
  if (!header.metadata.empty()) j[kMetadata] = header.metadata;
  for (const auto& [name, info] : header.tensors)
    j[name] = {{"dtype", info.dtype}, {"shape", info.shape}, {"data_offsets", json::array({info.begin, info.end})}};
  std::string text = j.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  return text;
}

}  // namespace emox
