// Which rank reads which files of a checkpoint, and whose elements they hold: worked out by rank 0, which alone knows
// the whole manifest, and told to every rank as far as it takes part.
//
// A rank reads its files one after another as one stream, from the first byte to the last, so that reading and
// verifying are one. Stream positions are what sender and receiver have in common.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "parallel/checkpoint/checkpoint.h"
#include "runtime/core/error.h"

namespace emox {

/// A dataset of a file that is read, for its checksum.
struct LoadedDataset {
  std::int64_t offset = 0, bytes = 0;
  std::string checksum, title;  ///< "x.weight (weight), elements [0, 7)"
};
struct LoadedFile {
  ManifestFile file;
  std::vector<LoadedDataset> datasets;  ///< by offset, without empty ones
};
/// Bytes of this rank's stream that a piece takes: of rank `to`, byte `at` of the memory of its piece number `piece`.
struct OutgoingBytes {
  std::int64_t begin = 0, bytes = 0;
  int to = 0;
  std::size_t piece = 0;
  std::int64_t at = 0;
};
/// The same, of the stream of another rank, for this rank's memory.
struct IncomingBytes {
  int from = 0;
  std::int64_t begin = 0, bytes = 0;
  std::size_t piece = 0;
  std::int64_t at = 0;
};

struct LoadPlan {
  std::vector<LoadedFile> files;   ///< of this rank's stream, in its order
  std::vector<OutgoingBytes> out;  ///< by begin
  std::vector<IncomingBytes> in;   ///< by (from, begin), from other ranks
  std::int64_t longest = 0;        ///< bytes of the longest stream
  bool exchanges = false;          ///< some rank needs what another one reads
};

/// Pieces that are not the checkpoint's: a missing array, another shape, another element type.
struct MisfitError : IoError {
  using IoError::IoError;
};

/// The wanted pieces as text, for rank 0.
std::string text_of_wanted(std::span<const CheckpointPiece> wanted);
/// On rank 0: the plan of every rank as text. `wanted`: from every rank. File number i goes to rank i % ranks, so that
/// as many ranks as saved read what each of them wrote. `only_needed`: files that hold nothing wanted are left out.
/// MisfitError that names both shapes or types. The manifest's offsets must be known.
std::vector<std::string> plan_loads(const Manifest& manifest, const std::string& checkpoint,
                                    const std::vector<std::string>& wanted, bool only_needed);
/// On rank 0: the names of the files that hold something wanted. MisfitError as plan_loads.
std::vector<std::string> needed_files(const Manifest& manifest, const std::string& checkpoint,
                                      const std::vector<std::string>& wanted);
LoadPlan load_plan_from(const std::string& text);

}  // namespace emox
