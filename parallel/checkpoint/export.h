// Arrays of a checkpoint as one HDF5 file for other programs: whole, at their names, byte for byte.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "parallel/checkpoint/arrays.h"
#include "parallel/comm/communicator.h"

namespace emox {

struct ExportedFile {
  std::int64_t arrays = 0;
  std::int64_t bytes = 0;  ///< of the file
};

/// Text attributes of the file's root: names and texts.
using ExportNotes = std::vector<std::pair<std::string, std::string>>;

/// Collective. Writes every array, whole, as the dataset at its name with '/' for '.' (moments beside their weight)
/// into `output`, which appears when it is complete and on the disk, and replaces one that is there. The files that
/// hold the arrays must have passed verify_files; rank 0 reads and writes, a block at a time. IoError, on all ranks,
/// when a file cannot be read or written; then nothing is left behind.
ExportedFile export_arrays(Communicator& comm, const std::filesystem::path& checkpoint,
                           const std::vector<SavedArray>& arrays, const std::filesystem::path& output,
                           const ExportNotes& notes);

}  // namespace emox
