#include "parallel/checkpoint/export.h"

#include <system_error>

#include "parallel/checkpoint/durable_file.h"
#include "parallel/checkpoint/hdf5_file.h"
#include "parallel/checkpoint/layout.h"
#include "parallel/checkpoint/open_files.h"
#include "parallel/comm/together.h"
#include "runtime/core/error.h"

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
    const fs::path temporary = output.string() + ".tmp";
    try {
      write_file(checkpoint, arrays, temporary, notes);
      result.bytes = static_cast<std::int64_t>(fs::file_size(temporary));
      fs::rename(temporary, output);
      sync_to_disk(fs::absolute(output).parent_path());
    } catch (...) {
      std::error_code ignored;  // what went wrong first is the message
      fs::remove(temporary, ignored);
      throw;
    }
  });
  return result;
}

}  // namespace emox
