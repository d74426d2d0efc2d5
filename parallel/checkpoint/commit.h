// The end of a save, on one rank: from shards on the disk to a checkpoint that loads, and has its name, which can be
// taken back until it stays.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "parallel/checkpoint/manifest.h"

namespace emox {

/// What becomes of a directory that has the name already when a new one is to get it.
enum class Existing : std::uint8_t {
  Remove,    ///< it goes when the new one stays
  MoveAside  ///< it stays, under a name that says when it was moved
};

/// A directory that has got its name, by rename(2), and may still lose it.
class PlacedDirectory {
 public:
  /// Renames `from` to `to` and syncs their parent. Where `to` is there and is to go, the two swap places, at once
  /// where the file system can do so; where it is to stay, it is moved aside before. IoError: both are where they were.
  PlacedDirectory(std::filesystem::path from, std::filesystem::path to, Existing existing);
  /// Unless kept, both go back; where the disk does not even allow that, `to` is removed.
  ~PlacedDirectory();
  PlacedDirectory(const PlacedDirectory&) = delete;
  PlacedDirectory& operator=(const PlacedDirectory&) = delete;
  /// It stays, and what was there before is removed if it is to go. Returns where it lies if it stays; else "".
  std::filesystem::path keep();

 private:
  void place();
  void take_back();
  const std::filesystem::path from_, to_;
  const Existing existing_;
  std::filesystem::path old_;  ///< where that lies which was there before; empty: nothing was
  bool placed_ = false;        ///< what is at `to_` came from `from_`
  bool kept_ = false;
};

/// Makes the symbolic link `link` lead to `target`, or lead there from now on, at once, and syncs its directory. What
/// has that name and is no link becomes `link`.replaced. IoError: it leads where it did, or, where the disk does not
/// allow that, is gone.
void replace_link(const std::filesystem::path& target, const std::filesystem::path& link);

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
