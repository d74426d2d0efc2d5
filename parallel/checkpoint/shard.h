// One rank's file of a checkpoint: from the pieces that a caller gives to the datasets that a file holds, written and
// known to be on the disk.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "parallel/checkpoint/checkpoint.h"

namespace emox {

/// ShapeError unless the piece is one: a name and role that a checkpoint can hold, a range inside its array, and so
/// many elements of host memory.
void check_piece(const CheckpointPiece& piece);

/// A dataset that is to be written.
struct ShardDataset {
  ManifestTensor entry;
  std::vector<TensorView> blocks;  ///< its elements, one block after another
};

/// Of the elements of all blocks.
std::string checksum_of_blocks(std::span<const TensorView> blocks);

/// The pieces, checked, ordered, those that adjoin each other merged; without checksums. Empty pieces of arrays that
/// have elements vanish.
std::vector<ShardDataset> shard_datasets(std::span<const CheckpointPiece> pieces, const std::string& file);

struct WrittenShard {
  ManifestFile file;
  std::vector<std::string> checksums;  ///< of the datasets, in their order
  std::vector<std::int64_t> offsets;   ///< of their elements in the file
  double seconds = 0;                  ///< what all of it took
};

/// Makes `directory` where it is missing and writes the file into it, and syncs the file, but no directory. The file's
/// checksum is that of the bytes that the file system gives back. IoError, naming the file and the system's reason,
/// when anything fails; what was written may then be left.
WrittenShard write_shard(const std::filesystem::path& directory, const std::string& file_name,
                         std::span<const ShardDataset> datasets);

/// The same without any checksums, for benchmarks: the seconds until the file is on the disk.
double write_shard_unchecked(const std::filesystem::path& directory, const std::string& file_name,
                             std::span<const ShardDataset> datasets);

}  // namespace emox
