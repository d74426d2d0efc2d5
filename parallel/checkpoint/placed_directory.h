// How a finished checkpoint gets its name, and the link to the newest one leads to it; both can be taken back.
#pragma once

#include <cstdint>
#include <filesystem>

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
  bool kept_ = false;
};

/// Makes the symbolic link `link` lead to `target`, or lead there from now on, at once, and syncs its directory. What
/// has that name and is no link becomes `link`.replaced. IoError: it leads where it did, or, where the disk does not
/// allow that, is gone.
void replace_link(const std::filesystem::path& target, const std::filesystem::path& link);

}  // namespace emox
