// Arrays of a checkpoint as one HDF5 file: a part of inspect.h.
#include "parallel/checkpoint/inspect.h"

#include "parallel/checkpoint/hdf5_file.h"
#include "parallel/checkpoint/layout.h"
#include "parallel/checkpoint/open_files.h"
#include "parallel/comm/together.h"
#include "runtime/core/error.h"
#include "runtime/files/atomic_file.h"
#include "runtime/files/files.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

void copy_array(OpenFiles& from, const SavedArray& array, Hdf5File& to, const Block& block) {
  const ManifestTensor entry{.name = array.name,
                             .role = array.role,
                             .dtype = array.dtype,
                             .shape = array.shape,
                             .begin = 0,
                             .end = array.elements(),
                             .file = {},
                             .dataset = dataset_path(array.name, array.role),
                             .checksum = {}};
  to.create_whole(entry);
  for (const ManifestTensor* piece : array.pieces) {
    std::int64_t at = piece->begin;
    from.read_whole(*piece, block, [&](const TensorView& view) {
      to.write_slice(entry, {at, view});
      at += view.numel();
    });
  }
}

void write_file(const fs::path& checkpoint, const std::vector<SavedArray>& arrays, const fs::path& path,
                const ExportNotes& notes) {
  Hdf5File file = Hdf5File::create(path);
  for (const auto& [name, text] : notes) file.write_note(name.c_str(), text);
  OpenFiles from(checkpoint);
  const Block block(kBlockBytes);
  for (const SavedArray& array : arrays) copy_array(from, array, file, block);
  file.close();
  sync_to_disk(path);  // the library does not
}

}  // namespace

ExportedFile export_arrays(Communicator& comm, const fs::path& checkpoint, const std::vector<SavedArray>& arrays,
                           const fs::path& output, const ExportNotes& notes) {
  ExportedFile result{.arrays = static_cast<std::int64_t>(arrays.size())};
  run_together(comm, [&] {
    if (comm.rank() != 0) return;
    TemporaryPath temporary(output);
    write_file(checkpoint, arrays, temporary.get(), notes);
    result.bytes = bytes_of_file(temporary.get());
    temporary.commit();
  });
  return result;
}

}  // namespace emox
