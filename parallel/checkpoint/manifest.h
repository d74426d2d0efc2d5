// manifest.json: what a checkpoint consists of. It is written last and holds a checksum of every file and of itself, so
// a directory whose manifest passes and whose files match it is complete.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/core/dtype.h"
#include "runtime/core/shape.h"

namespace emox {

struct ManifestFile {
  std::string name;
  std::int64_t bytes = 0;
  std::string checksum;  ///< XXH3-128 of the whole file
};

/// One dataset: a parameter's weight, or one of its moments.
struct ManifestTensor {
  std::string name;  ///< the parameter's
  std::string role;  ///< "weight", "exp_avg", "exp_avg_sq"
  DType dtype = DType::F32;
  Shape shape;
  std::string file;
  std::string checksum;  ///< XXH3-128 of the elements in memory
};

struct Manifest {
  static constexpr int kFormatVersion = 1;
  std::int64_t step = 0;
  std::int64_t tokens = 0;
  std::uint64_t seed = 0;
  int world_size = 1;
  std::string recipe;
  nlohmann::json extra = nlohmann::json::object();
  std::vector<ManifestFile> files;
  std::vector<ManifestTensor> tensors;
};

nlohmann::json to_json(const ManifestTensor& tensor);
ManifestTensor tensor_from_json(const nlohmann::json& j);

/// The manifest's text, its own checksum included.
std::string manifest_text(const Manifest& manifest);
/// Reads and checks `checkpoint`/manifest.json. IoError naming the file when it is missing, damaged or of another
/// version.
Manifest read_manifest(const std::filesystem::path& checkpoint);

}  // namespace emox
