// Looking into a checkpoint without a model: is it what its manifest says, and what are its arrays like. All calls are
// collective and share the reading among the ranks; none holds more than a block of an array.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "parallel/checkpoint/arrays.h"
#include "parallel/checkpoint/manifest.h"
#include "parallel/comm/communicator.h"

namespace emox {

/// DamagedError, on all ranks, when any of the checkpoint's files of these names is missing or has another size or
/// checksum: HDF5 must not see it then. UnreadableError when one cannot be read. Each file is read by one rank.
void verify_files(Communicator& comm, const std::filesystem::path& checkpoint, const Manifest& manifest,
                  const std::vector<std::string>& names);

/// What reading every byte of a checkpoint showed.
struct CheckpointSurvey {
  std::filesystem::path path;
  std::vector<std::string> damage;   ///< all of it, each message naming its file
  std::vector<std::string> unknown;  ///< what could not be read, or has another format version: it may be good
  std::int64_t files = 0, bytes = 0, datasets = 0;
  double seconds = 0;
  bool intact() const { return damage.empty() && unknown.empty(); }
};

/// The manifest (its checksum, its fields, that its pieces make whole arrays), then sizes and checksums of all files,
/// then shape, type and checksum of every dataset in files that passed. What is wrong is returned, never thrown, and
/// the same on all ranks.
CheckpointSurvey survey_checkpoint(Communicator& comm, const std::filesystem::path& checkpoint);

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

}  // namespace emox
