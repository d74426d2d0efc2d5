#include "parallel/checkpoint/manifest.h"

#include <algorithm>
#include <climits>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <unordered_set>

#include "parallel/checkpoint/checksum.h"
#include "parallel/checkpoint/coverage.h"
#include "parallel/checkpoint/durable_file.h"
#include "parallel/checkpoint/fault.h"
#include "parallel/checkpoint/layout.h"
#include "parallel/checkpoint/strict_json.h"
#include "runtime/core/error.h"
#include "runtime/core/version.h"

namespace emox {
namespace {

using nlohmann::json;

constexpr const char* kFormat = "emox checkpoint";
/// How every manifest begins: the checksum stands first, so that it can be taken out of the text and checked.
constexpr std::string_view kHead = "{\n \"checksum\": \"";
constexpr std::string_view kAfterChecksum = "\",\n";
constexpr std::size_t kChecksumDigits = 32;
/// How deep lists and objects may lie in each other. The JSON library parses in a loop, but copies and prints by
/// recursion, and a text of brackets must not exhaust the stack.
constexpr int kDeepest = 64;

void check_depth(std::string_view text) {
  int depth = 0;
  bool quoted = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted && c == '\\') ++i;
    if (c == '"') quoted = !quoted;
    if (quoted) continue;
    if (c == '[' || c == '{') require<IoError>(++depth <= kDeepest, "it is nested more than {} deep", kDeepest);
    if (c == ']' || c == '}') --depth;
  }
}

DType dtype_from(const StrictJson& j) {
  const std::string name = j.text();
  for (const DType t : {DType::F32, DType::F64, DType::I32, DType::I64, DType::U8})
    if (name_of(t) == name) return t;
  j.reject("an element type");
}

json dims_of(const Shape& shape) {
  json dims = json::array();
  for (int i = 0; i < shape.rank(); ++i) dims.push_back(shape[i]);
  return dims;
}

/// A shape whose elements of at most 8 bytes can be counted.
Shape shape_from(const StrictJson& j) {
  std::vector<std::int64_t> d;
  std::int64_t bytes = 8;
  for (const StrictJson& extent : j.elements()) {
    d.push_back(extent.integer(0, INT64_MAX));
    if (__builtin_mul_overflow(bytes, d.back(), &bytes)) j.reject("a shape: too many elements");
  }
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
      j.reject(fmt::format("a shape of at most {} extents", Shape::kMaxRank));
  }
}

/// A file's name in a manifest must not lead out of the checkpoint.
std::string file_name_from(const StrictJson& j) {
  std::string name = j.text();
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos ||
      name.find('\0') != std::string::npos)
    j.reject("the name of a file in the checkpoint");
  return name;
}

std::string checksum_from(const StrictJson& j) {
  std::string text = j.text();
  const auto is_digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  if (text.size() != kChecksumDigits || !std::all_of(text.begin(), text.end(), is_digit)) j.reject("a checksum");
  return text;
}

void check_placement(const StrictJson& placement) {
  const std::int64_t ranks = placement.at("expert_parallel").integer(1, INT_MAX);
  for (const StrictJson& layer : placement.at("table").elements())
    for (const StrictJson& rank : layer.elements()) rank.integer(0, ranks - 1);
}

void check_mesh(const StrictJson& mesh) {
  for (const char* extent : {"expert_parallel", "data_parallel"}) mesh.at(extent).integer(1, INT_MAX);
}

json content_of(const Manifest& m) {
  json files = json::array();
  for (const ManifestFile& f : m.files)
    files.push_back({{"name", f.name}, {"bytes", f.bytes}, {"xxh3_128", f.checksum}});
  json tensors = json::array();
  for (const ManifestTensor& t : m.tensors) tensors.push_back(to_json(t));
  return {{"format", kFormat},
          {"version", m.version},
          {"step", m.step},
          {"tokens", m.tokens},
          {"seed", m.seed},
          {"world_size", m.world_size},
          {"recipe", m.recipe},
          {"extra", m.extra},
          {"placement", m.placement},
          {"mesh", m.mesh},
          {"libraries", m.libraries},
          {"files", std::move(files)},
          {"tensors", std::move(tensors)}};
}

/// Of the text without its checksum, so that any changed byte, in white space as well, is noticed.
std::string checksum_of_rest(std::string_view rest) {
  Checksum checksum;
  checksum.update(rest.data(), rest.size());
  return checksum.hex();
}

bool has_own_checksum(std::string_view text) {
  const std::size_t rest = kHead.size() + kChecksumDigits + kAfterChecksum.size();
  return text.size() > rest && text.starts_with(kHead) &&
         text.substr(rest - kAfterChecksum.size(), kAfterChecksum.size()) == kAfterChecksum &&
         text.substr(kHead.size(), kChecksumDigits) == checksum_of_rest(text.substr(rest));
}

constexpr const char* kWrongChecksum = "it is damaged: its content does not match its own checksum";

/// Whether the text would be whole if it had a version of this emox instead: then the version is what is damaged in it.
bool has_damaged_version(std::string text, std::int64_t version) {
  const std::string key = "\"version\": ", number = fmt::format("{}", version);
  const std::size_t at = text.rfind(key + number);
  if (at == std::string::npos) return false;
  std::size_t digits = number.size();
  for (int good = Manifest::kOldestVersion; good <= Manifest::kFormatVersion; ++good) {
    const std::string other = fmt::format("{}", good);
    text.replace(at + key.size(), digits, other);
    digits = other.size();
    if (has_own_checksum(text)) return true;
  }
  return false;
}

/// "0.2.0", or nothing.
std::string emox_of(const json& content) {
  const json* libraries = content.contains("libraries") ? &content["libraries"] : nullptr;
  if (libraries == nullptr || !libraries->is_object() || !libraries->contains("emox")) return "";
  const json& version = libraries->at("emox");
  return version.is_string() ? " by emox " + version.get<std::string>() : "";
}

ManifestTensor tensor_from(const StrictJson& j) {
  ManifestTensor t{.name = j.at("name").text(),
                   .role = j.at("role").text(),
                   .dtype = dtype_from(j.at("dtype")),
                   .shape = shape_from(j.at("shape")),
                   .file = file_name_from(j.at("file")),
                   .dataset = j.at("dataset").text(),
                   .checksum = checksum_from(j.at("xxh3_128"))};
  if (!is_tensor_name(t.name)) j.at("name").reject("the name of a tensor");
  if (!is_role(t.role)) j.at("role").reject("weight, exp_avg or exp_avg_sq");
  if (!t.dataset.starts_with("/") || t.dataset.find('\0') != std::string::npos)
    j.at("dataset").reject("the path of a dataset");
  const std::int64_t n = t.shape.numel();
  // An empty array is [0, 0); no other piece is empty.
  t.begin = j.at("begin").integer(0, std::max<std::int64_t>(n - 1, 0));
  t.end = j.at("end").integer(n == 0 ? 0 : t.begin + 1, n);
  return t;
}

Manifest from_content(const StrictJson& j) {
  Manifest m;
  m.version = static_cast<int>(j.at("version").integer(Manifest::kOldestVersion, Manifest::kFormatVersion));
  m.step = j.at("step").integer(0, INT64_MAX);
  m.tokens = j.at("tokens").integer(0, INT64_MAX);
  m.seed = j.at("seed").unsigned_integer();
  m.world_size = static_cast<int>(j.at("world_size").integer(1, INT_MAX));
  m.recipe = j.at("recipe").text();
  m.extra = j.at("extra").json();
  m.placement = j.at("placement").json();
  m.mesh = j.at("mesh").json();
  check_placement_and_mesh(m.placement, m.mesh);
  m.libraries = j.at("libraries").json();
  if (!m.libraries.is_object()) j.at("libraries").reject("an object");
  std::unordered_map<std::string, std::int64_t> files;  // and their bytes
  std::unordered_set<std::string> datasets;
  for (const StrictJson& f : j.at("files").elements()) {
    m.files.push_back(
        {file_name_from(f.at("name")), f.at("bytes").integer(0, INT64_MAX), checksum_from(f.at("xxh3_128"))});
    if (!files.emplace(m.files.back().name, m.files.back().bytes).second)
      f.reject("a file of its own: another has its name");
  }
  for (const StrictJson& t : j.at("tensors").elements()) {
    m.tensors.push_back(tensor_from(t));
    const ManifestTensor& last = m.tensors.back();
    const auto file = files.find(last.file);
    if (file == files.end()) t.at("file").reject("one of \"files\"");
    if (m.version > Manifest::kOldestVersion) m.tensors.back().offset = t.at("offset").integer(0, file->second);
    if (!datasets.insert(last.file + last.dataset).second) t.at("dataset").reject("used once in its file");
  }
  check_coverage(m.tensors, [](const ManifestTensor& t) { return t.file; });
  for (const ManifestTensor& t : m.tensors)
    require<IoError>(bytes_of(t) <= files.at(t.file) - t.offset,
                     "{} ({}): its {} bytes from {} on are more than {} holds ({})", t.name, t.role, bytes_of(t),
                     t.offset, t.file, files.at(t.file));
  return m;
}

void check_version(const StrictJson& j, const std::string& text) {
  require<IoError>(j.at("format").text() == kFormat, "it is not the manifest of an emox checkpoint");
  const std::int64_t version = j.at("version").integer(0, INT64_MAX);
  if (version >= Manifest::kOldestVersion && version <= Manifest::kFormatVersion) return;
  // Another version may compute its checksum differently; but a text that is whole with a version of this emox is one
  // whose version is damaged.
  require<IoError>(!has_damaged_version(text, version), "{}", kWrongChecksum);
  fail<OtherVersionError>(
      "it was written{} in format version {}, this emox ({}) reads versions {} to {}: go on with the emox "
      "that wrote it{}",
      emox_of(j.json()), version, kVersion, Manifest::kOldestVersion, Manifest::kFormatVersion,
      version > Manifest::kFormatVersion ? ", or with a newer one" : "");
}

}  // namespace

std::int64_t bytes_of(const ManifestTensor& t) {
  return (t.end - t.begin) * static_cast<std::int64_t>(size_of(t.dtype));
}

json to_json(const ManifestTensor& t) {
  json j = {{"name", t.name},   {"role", t.role},       {"dtype", std::string(name_of(t.dtype))},
            {"begin", t.begin}, {"end", t.end},         {"shape", dims_of(t.shape)},
            {"file", t.file},   {"dataset", t.dataset}, {"xxh3_128", t.checksum}};
  if (t.offset >= 0) j["offset"] = t.offset;
  return j;
}

ManifestTensor tensor_from_json(const json& j, const std::string& place) { return tensor_from({j, place}); }

void check_placement_and_mesh(const json& placement, const json& mesh) {
  if (!placement.is_null()) check_placement({placement, "placement"});
  if (!mesh.is_null()) check_mesh({mesh, "mesh"});
}

std::string signed_text(json content) {
  content.erase("checksum");
  std::string rest = content.dump(1).substr(2) + "\n";
  std::string text(kHead);
  text += checksum_of_rest(rest);
  text += kAfterChecksum;
  return text + rest;
}

std::string manifest_text(const Manifest& manifest) {
  constexpr const char* kTask = "the checkpoint's recipe or extra data cannot be written";
  try {
    std::string text = signed_text(content_of(manifest));
    check_depth(text);
    return text;
  } catch (const json::exception& e) {
    fail<IoError>("{} as JSON: {}", kTask, e.what());
  } catch (const IoError& e) {
    fail<IoError>("{}: {}", kTask, e.message());
  }
}

Manifest parse_manifest(const std::string& text, const std::string& where) {
  try {
    check_depth(text);
    const json content = json::parse(text);
    const StrictJson j(content, "");
    check_version(j, text);
    require<IoError>(has_own_checksum(text), "{}", kWrongChecksum);
    return from_content(j);
  } catch (const json::exception& e) {
    const std::string what = e.what();  // "[json.exception.parse_error.101] parse error at line 1, column 1: ..."
    const std::size_t name = what.find("] ");
    fail<DamagedError>("{} is damaged: {}", where, name == std::string::npos ? what : what.substr(name + 2));
  } catch (const OtherVersionError& e) {
    fail<OtherVersionError>("{} cannot be used: {}", where, e.message());
  } catch (const IoError& e) {
    fail<DamagedError>("{} cannot be used: {}", where, e.message());
  }
}

Manifest read_manifest(const std::filesystem::path& checkpoint) {
  const std::string file = (checkpoint / "manifest.json").string();
  return parse_manifest(read_text_file(file), file);
}

}  // namespace emox
