// The end of a save, on one rank: from shards on the disk to a checkpoint that loads.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "parallel/checkpoint/manifest.h"
#include "parallel/checkpoint/placed_directory.h"

namespace emox {

/// Which checkpoints stay when a new one is complete.
struct Retention {
  int keep_last = 0;                  ///< 0: all
  std::int64_t keep_every_steps = 0;  ///< and those at multiples of this; 0: none
};

struct CommittedCheckpoint {
  std::filesystem::path path;
  std::filesystem::path aside;  ///< where a directory that was there already lies now; empty: none was, or it is gone
  std::string not_removed;      ///< why older ones that should have gone are still there; empty: none
};

/// step-00000123.tmp, where the shards are written.
std::filesystem::path unfinished_path(const std::filesystem::path& directory, std::int64_t step);

/// Adds index and manifest (whose own entry for the index this makes) to the shards in unfinished_path(), renames that
/// to its final name, moves `latest`, and removes what `retention` does not keep. Each of these is on the disk before
/// the next begins. `existing`: what becomes of a directory with the final name. Throws IoError; then this step's
/// checkpoint is not there, and earlier ones and `latest` are as they were. An old checkpoint that cannot be removed
/// stays until a later save.
CommittedCheckpoint commit_checkpoint(const std::filesystem::path& directory, Manifest& manifest,
                                      const Retention& retention, Existing existing);

}  // namespace emox
