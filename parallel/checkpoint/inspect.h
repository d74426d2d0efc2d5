// Looking into a checkpoint without a model: what its arrays are like, how those of two differ, arrays as a file for
// other programs. All calls are collective and share the reading among the ranks; none holds more than a block of an
// array. The files that hold the arrays must have passed verify_files (verify.h).
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "parallel/checkpoint/arrays.h"
#include "parallel/comm/communicator.h"

namespace emox {

/// What an array's elements come to.
struct ArrayStatistics {
  std::int64_t elements = 0;
  std::int64_t zeros = 0;
  std::int64_t not_finite = 0;  ///< NaN and infinite
  double sum = 0;
  double sum_squares = 0;      ///< NaN or infinite if elements are, like the sum
  double least = 0, most = 0;  ///< NaNs left out; 0 of an array without elements
  double l2() const;
  double mean() const { return elements == 0 ? 0 : sum / static_cast<double>(elements); }
  double rms() const;  ///< root of the mean square; 0 of an array without elements
};

/// Of each array, the same bits on any number of ranks. The files that hold them must have passed verify_files. IoError
/// when a dataset's own checksum is not the manifest's.
std::vector<ArrayStatistics> measure_arrays(Communicator& comm, const std::filesystem::path& checkpoint,
                                            const std::vector<SavedArray>& arrays);

/// Of an array that both have, with one shape and type.
struct ArrayDifference {
  std::string name, role;
  DType dtype = DType::F32;
  Shape shape;
  std::int64_t different = 0;  ///< elements whose bits differ
  std::int64_t unordered = 0;  ///< of these, those where a - b is no number
  /// Largest |a - b| of elements whose bits differ; NaN if any of these is no number.
  double largest = 0;
  std::int64_t worst = -1;  ///< the element, in the flattened array, where that is; -1: all equal
  double a = 0, b = 0;      ///< its values
  double sum_squares = 0;   ///< of a - b
  double reference = 0;     ///< of a; 0 where all are equal and nothing was read
  bool equal() const { return different == 0; }
  /// |a - b| / |a| in the L2 norm.
  double relative() const;
};

/// An array that only one has, or both with other shapes or types.
struct ArrayMismatch {
  std::string title;
  std::string a, b;  ///< type and shape, "" where it is missing
};

struct CheckpointDifference {
  std::vector<ArrayMismatch> mismatches;
  std::vector<ArrayDifference> arrays;  ///< in the order of arrays_of; equal ones too
  bool equal() const;
};

/// A checkpoint and its arrays, whose files have passed verify_files.
struct ComparedCheckpoint {
  const std::filesystem::path& path;
  const std::vector<SavedArray>& arrays;
};

/// Collective; the same result on all ranks and, bit for bit, on any number of them. Arrays that are cut alike and
/// whose pieces have equal checksums are equal and not read.
CheckpointDifference compare_checkpoints(Communicator& comm, const ComparedCheckpoint& a, const ComparedCheckpoint& b);

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
