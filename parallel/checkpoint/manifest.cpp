#include "parallel/checkpoint/manifest.h"

#include "parallel/checkpoint/checksum.h"
#include "parallel/checkpoint/durable_file.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

using nlohmann::json;

constexpr const char* kFormat = "emox checkpoint";

DType dtype_from_name(const std::string& name) {
  for (const DType t : {DType::F32, DType::F64, DType::I32, DType::I64, DType::U8})
    if (name_of(t) == name) return t;
  fail<IoError>("unknown element type \"{}\"", name);
}

json dims_of(const Shape& shape) {
  json dims = json::array();
  for (int i = 0; i < shape.rank(); ++i) dims.push_back(shape[i]);
  return dims;
}

Shape shape_from_dims(const std::vector<std::int64_t>& d) {
  switch (d.size()) {
    case 0:
      return {};
    case 1:
      return {d[0]};
    case 2:
      return {d[0], d[1]};
    case 3:
      return {d[0], d[1], d[2]};
    case 4:
      return {d[0], d[1], d[2], d[3]};
    default:
      fail<IoError>("a tensor of {} dimensions; at most {} are known", d.size(), Shape::kMaxRank);
  }
}

json content_of(const Manifest& m) {
  json files = json::array();
  for (const ManifestFile& f : m.files)
    files.push_back({{"name", f.name}, {"bytes", f.bytes}, {"xxh3_128", f.checksum}});
  json tensors = json::array();
  for (const ManifestTensor& t : m.tensors) tensors.push_back(to_json(t));
  return {{"format", kFormat},  {"version", Manifest::kFormatVersion},
          {"step", m.step},     {"tokens", m.tokens},
          {"seed", m.seed},     {"world_size", m.world_size},
          {"recipe", m.recipe}, {"extra", m.extra},
          {"files", files},     {"tensors", tensors}};
}

/// The checksum is that of the text without it; the text is the only one that this content can have, so that any
/// changed byte, in white space as well, is noticed.
std::string text_with_checksum(json content) {
  content["checksum"] = checksum_of(content.dump(1));
  return content.dump(1) + "\n";
}

/// A file's name in a manifest must not lead out of the checkpoint.
std::string plain_file_name(std::string name) {
  require<IoError>(!name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos,
                   "\"{}\" is not the name of a file in the checkpoint", name);
  return name;
}

Manifest from_content(const json& j) {
  Manifest m;
  j.at("step").get_to(m.step);
  j.at("tokens").get_to(m.tokens);
  j.at("seed").get_to(m.seed);
  j.at("world_size").get_to(m.world_size);
  j.at("recipe").get_to(m.recipe);
  m.extra = j.at("extra");
  for (const json& f : j.at("files"))
    m.files.push_back({plain_file_name(f.at("name")), f.at("bytes"), f.at("xxh3_128")});
  for (const json& t : j.at("tensors")) m.tensors.push_back(tensor_from_json(t));
  return m;
}

Manifest parse_manifest(const std::string& text) {
  json j = json::parse(text);
  // Told before the checksum: another version may compute that differently.
  require<IoError>(j.at("format") == kFormat, "not the manifest of an emox checkpoint");
  require<IoError>(j.at("version") == Manifest::kFormatVersion, "format version {}; this emox reads version {}",
                   j.at("version").dump(), Manifest::kFormatVersion);
  json content = j;
  content.erase("checksum");
  require<IoError>(text_with_checksum(std::move(content)) == text, "its content does not match its own checksum");
  return from_content(j);
}

}  // namespace

json to_json(const ManifestTensor& t) {
  return {
      {"name", t.name}, {"role", t.role},        {"dtype", std::string(name_of(t.dtype))}, {"shape", dims_of(t.shape)},
      {"file", t.file}, {"xxh3_128", t.checksum}};
}

ManifestTensor tensor_from_json(const json& j) {
  return {.name = j.at("name"),
          .role = j.at("role"),
          .dtype = dtype_from_name(j.at("dtype")),
          .shape = shape_from_dims(j.at("shape").get<std::vector<std::int64_t>>()),
          .file = plain_file_name(j.at("file")),
          .checksum = j.at("xxh3_128")};
}

std::string manifest_text(const Manifest& manifest) {
  try {
    return text_with_checksum(content_of(manifest));
  } catch (const json::exception& e) {
    fail<IoError>("the checkpoint's recipe or extra data cannot be written as JSON: {}", e.what());
  }
}

Manifest read_manifest(const std::filesystem::path& checkpoint) {
  const std::string file = (checkpoint / "manifest.json").string();
  const std::string text = read_text_file(file);
  try {
    return parse_manifest(text);
  } catch (const json::exception& e) {
    fail<IoError>("{} is damaged: {}", file, e.what());
  } catch (const IoError& e) {
    fail<IoError>("{} is damaged: {}", file, e.message());
  }
}

}  // namespace emox
