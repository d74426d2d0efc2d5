// One rank's file of a checkpoint: its datasets, written and known to be on the disk.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "parallel/checkpoint/manifest.h"
#include "parallel/checkpoint/pieces.h"

namespace emox {

struct WrittenShard {
  ManifestFile file;
  std::vector<std::string> checksums;  ///< of the stretches, in their order
  std::vector<std::int64_t> offsets;   ///< of their elements in the file
  double seconds = 0;                  ///< what all of it took
};

/// Makes `directory` where it is missing and writes the file into it, and syncs the file, but no directory. The file's
/// checksum is that of the bytes that the file system gives back. IoError, naming the file and the system's reason,
/// when anything fails; what was written may then be left.
WrittenShard write_shard(const std::filesystem::path& directory, const std::string& file_name,
                         std::span<const Stretch> stretches);

/// The same without any checksums, for benchmarks: the seconds until the file is on the disk.
double write_shard_unchecked(const std::filesystem::path& directory, const std::string& file_name,
                             std::span<const Stretch> stretches);

}  // namespace emox
