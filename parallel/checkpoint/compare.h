// How two checkpoints differ, array by array, whatever the ranks and files that each was cut into.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "parallel/checkpoint/arrays.h"
#include "parallel/comm/communicator.h"

namespace emox {

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

}  // namespace emox
