// Loading: verify each file once across the job, find every array in the manifest, read.
#include <map>
#include <utility>

#include "parallel/checkpoint/agreement.h"
#include "parallel/checkpoint/checkpoint.h"
#include "parallel/checkpoint/checksum.h"
#include "parallel/checkpoint/hdf5_file.h"
#include "parallel/checkpoint/layout.h"
#include "parallel/checkpoint/verify.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

using Index = std::map<std::pair<std::string, std::string>, const ManifestTensor*>;

Index index_of(const Manifest& manifest) {
  Index index;
  for (const ManifestTensor& t : manifest.tensors) index[{t.name, t.role}] = &t;
  return index;
}

const ManifestTensor& find_array(const Index& index, const CheckpointArray& a, const fs::path& path) {
  const auto found = index.find({a.name, a.role});
  require<IoError>(found != index.end(), "the checkpoint {} has no {} ({})", path.string(), a.name, a.role);
  const ManifestTensor& t = *found->second;
  require<IoError>(t.shape == a.view.shape(), "{} ({}) is {} in the checkpoint {}, {} here", a.name, a.role,
                   t.shape.str(), path.string(), a.view.shape().str());
  require<IoError>(t.dtype == a.view.dtype(), "{} ({}) holds {} in the checkpoint {}, {} here", a.name, a.role,
                   name_of(t.dtype), path.string(), name_of(a.view.dtype()));
  return t;
}

void read_array(Hdf5File& file, const CheckpointArray& a, const ManifestTensor& t) {
  file.read(dataset_path(a.name, a.role), a.view);
  const std::string checksum = checksum_of(a.view.raw(), a.view.bytes());
  require<IoError>(checksum == t.checksum, "{} ({}) in {} is damaged: checksum {}, the manifest says {}", a.name,
                   a.role, t.file, checksum, t.checksum);
}

/// Arrays grouped by file, so that each file is opened once.
using ArraysByFile = std::map<std::string, std::vector<std::pair<const CheckpointArray*, const ManifestTensor*>>>;

ArraysByFile group_by_file(const std::vector<CheckpointArray>& arrays, const Manifest& manifest, const fs::path& path) {
  const Index index = index_of(manifest);
  ArraysByFile groups;
  for (const CheckpointArray& a : arrays) {
    const ManifestTensor& t = find_array(index, a, path);
    groups[t.file].emplace_back(&a, &t);
  }
  return groups;
}

}  // namespace

Manifest load_checkpoint(Communicator& comm, const fs::path& path, std::span<const CheckpointTensor> tensors) {
  Manifest manifest;
  std::vector<CheckpointArray> arrays;
  ArraysByFile groups;
  run_together(comm, [&] {
    manifest = read_manifest(path);
    arrays = arrays_of(tensors);
    groups = group_by_file(arrays, manifest, path);
  });
  run_together(comm, [&] {
    // Sizes are cheap: a missing or short file is told before gigabytes are read.
    for (const ManifestFile& f : manifest.files) check_file_size(path, f);
    for (std::size_t i = 0; i < manifest.files.size(); ++i)
      if (static_cast<int>(i % static_cast<std::size_t>(comm.size())) == comm.rank())
        check_file_content(path, manifest.files[i]);
  });
  run_together(comm, [&] {
    for (const auto& [name, members] : groups) {
      Hdf5File file = Hdf5File::open(path / name);
      for (const auto& [array, entry] : members) read_array(file, *array, *entry);
    }
  });
  return manifest;
}

}  // namespace emox
