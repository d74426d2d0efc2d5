// manifest.json: what a checkpoint consists of. It is written last and holds a checksum of every file and of itself, so
// a directory whose manifest passes and whose files match it is complete.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <span>
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

/// One dataset: elements [begin, end) of a flattened array, which is a parameter's weight or one of its moments.
struct ManifestTensor {
  std::string name;  ///< the parameter's
  std::string role;  ///< "weight", "exp_avg", "exp_avg_sq"
  DType dtype = DType::F32;
  Shape shape;  ///< the whole array's
  std::int64_t begin = 0, end = 0;
  std::string file, dataset;
  std::string checksum;  ///< XXH3-128 of the elements in memory
  std::int64_t offset =
      -1;  ///< of the elements in the file, which holds them in one stretch; -1: not known (version 3)

  bool whole() const { return begin == 0 && end == shape.numel(); }
  /// The array's when whole; a part is one-dimensional.
  Shape dataset_shape() const { return whole() ? shape : Shape{end - begin}; }
};

struct Manifest {
  static constexpr int kFormatVersion = 4;  ///< what is written
  static constexpr int kOldestVersion = 3;  ///< what is read, too: without offsets
  int version = kFormatVersion;
  std::int64_t step = 0;
  std::int64_t tokens = 0;
  std::uint64_t seed = 0;
  int world_size = 1;
  std::string recipe;
  nlohmann::json extra = nlohmann::json::object();
  /// Where the experts were, or null: {"expert_parallel": R, "table": [[rank of expert 0, of expert 1, ...] per layer]}
  nlohmann::json placement = nullptr;
  /// What the ranks were, or null: {"expert_parallel": ..., "data_parallel": ...}
  nlohmann::json mesh = nullptr;
  /// Versions of what wrote it, by name.
  nlohmann::json libraries = nlohmann::json::object();
  std::vector<ManifestFile> files;
  std::vector<ManifestTensor> tensors;
};

/// Bytes of the piece's elements.
std::int64_t bytes_of(const ManifestTensor& tensor);
nlohmann::json to_json(const ManifestTensor& tensor);
/// What to_json made, its numbers checked against each other; `place` is named in messages.
ManifestTensor tensor_from_json(const nlohmann::json& j, const std::string& place);

/// IoError unless both are what a manifest may hold.
void check_placement_and_mesh(const nlohmann::json& placement, const nlohmann::json& mesh);

/// The manifest's text, its own checksum included.
std::string manifest_text(const Manifest& manifest);
/// The text of any content with its checksum in front; one that the content holds already is replaced.
std::string signed_text(nlohmann::json content);
/// Checks the text of a manifest: its checksum, every field, that its pieces make whole arrays. IoError beginning with
/// `where`: a DamagedError, or an OtherVersionError where that is certain (file_error.h); nothing else, whatever the
/// text.
Manifest parse_manifest(const std::string& text, const std::string& where);
/// parse_manifest of `checkpoint`/manifest.json. Fails as fail_to_read (file_error.h) when it cannot be read.
Manifest read_manifest(const std::filesystem::path& checkpoint);

/// The pieces ordered by name, role and begin: those of one array are neighbours, in the order of their elements.
std::vector<const ManifestTensor*> in_order(std::span<const ManifestTensor> pieces);

/// IoError that names the array, the elements and the holders when: elements are in two pieces or in none; the pieces
/// of an array differ in shape or element type; a parameter has moments without a weight, one moment, or moments of
/// another shape than the weight; two arrays have one place in a file. An array without elements is one piece, [0, 0).
/// `holder` says whose a piece is ("rank 3"). O(n log n).
void check_coverage(std::span<const ManifestTensor> pieces,
                    const std::function<std::string(const ManifestTensor&)>& holder);

/// What wrote a checkpoint: {"emox": "0.1.0", "hdf5": "1.10.8", "xxhash": ..., "compiler": ...}.
nlohmann::json library_versions();

/// "1.10.8" of the HDF5 library in use.
std::string hdf5_version();

}  // namespace emox
