// Saves the same tensors again and again, at once or while training goes on.
//
// A save in the background: start() copies this rank's pieces into a buffer that exists already, and an I/O thread
// writes them. The caller lets finished() ride on an all-reduce that it makes anyway; when the sum says that all ranks
// have finished, every rank calls advance(), and rank 0's I/O thread adds the manifest and puts the checkpoint in
// place. Saves never overlap.
#pragma once

#include <cstdint>
#include <filesystem>
#include <future>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "parallel/checkpoint/checkpoint.h"
#include "parallel/checkpoint/commit.h"
#include "parallel/checkpoint/shard.h"
#include "runtime/core/context.h"

namespace emox {

struct SaverOptions {
  bool background = false;  ///< keeps a copy of the pieces' memory
  Retention retention;
  Context* context = nullptr;  ///< of pieces that lie on a device, which are copied to the host before they are written
};

/// A checkpoint that is in place.
struct SavedCheckpoint {
  std::filesystem::path path;
  std::int64_t step = 0;
  double write_seconds = 0;     ///< this rank's shard, checksums included
  double commit_seconds = 0;    ///< rank 0: index, manifest, renaming and retention
  std::filesystem::path aside;  ///< rank 0: as in CommittedCheckpoint
  std::string not_removed;      ///< there, too
};

/// Pieces that are neighbours in memory, copied as one.
struct CopyRun {
  TensorView from, to;
};

class CheckpointSaver {
 public:
  /// Collective; every rank gives the pieces that it alone writes, or none, in memory that stays where it is, on
  /// the host or a device. All
  /// pieces together must hold every element of every array that occurs in them exactly once, a parameter's both
  /// moments or none, and moments of the weight's shape: otherwise all ranks throw an IoError that names array,
  /// elements and ranks. Leftovers of crashed saves in `directory` are removed.
  CheckpointSaver(Communicator& comm, std::filesystem::path directory, std::span<const CheckpointPiece> pieces,
                  const SaverOptions& options);
  /// Waits for this rank's I/O thread; a save that was not advanced to its end leaves nothing that loads.
  ~CheckpointSaver();
  CheckpointSaver(const CheckpointSaver&) = delete;
  CheckpointSaver& operator=(const CheckpointSaver&) = delete;

  /// Collective. Writes the pieces as they are and returns when the checkpoint is in place. When any rank fails, all
  /// throw an IoError with that rank's message, nothing of this step stays behind, and earlier checkpoints are as they
  /// were. No save may be running. `meta` is rank 0's. A directory of this step that this object did not write is moved
  /// aside, never removed.
  SavedCheckpoint save(std::int64_t step, const CheckpointMeta& meta);

  /// Begins a save in the background (options.background). Returns when the pieces are copied: they may change then.
  /// Every rank must call it at the same point; it does not communicate. No save may be running.
  void start(Context& ctx, std::int64_t step, const CheckpointMeta& meta);
  /// A save is running: the same on all ranks.
  bool running() const { return phase_ != Phase::Idle; }
  /// This rank has done its part of the present stage, well or not, and does not keep the others waiting.
  bool finished() const;
  /// Collective, when all ranks have finished. The checkpoint when that was the last stage. Throws as save() does; the
  /// save is over then.
  std::optional<SavedCheckpoint> advance();
  /// Collective. Waits until the running save is over. Throws as save() does.
  SavedCheckpoint wait();

  /// Elements' bytes that this rank writes.
  std::int64_t bytes() const { return bytes_; }
  /// Host memory of the copy: about as much, or 0 where there is none.
  std::int64_t buffer_bytes() const { return static_cast<std::int64_t>(memory_.view().bytes()); }

 private:
  enum class Phase : std::uint8_t { Idle, Writing, Committing };
  bool first() const { return comm_.rank() == 0; }
  void begin(std::int64_t step, const CheckpointMeta& meta);
  void copy_pieces(Context& ctx) const;
  WrittenShard write(const std::vector<ShardDataset>& datasets) const;
  void finish_writing();
  SavedCheckpoint finish_commit();
  void give_up();

  Communicator& comm_;
  const std::filesystem::path directory_;
  const SaverOptions options_;
  const std::string file_name_;
  std::vector<CheckpointPiece> pieces_;
  std::vector<ShardDataset> live_, copied_;  ///< the same datasets, of the pieces and of their copy
  Tensor memory_;                            ///< of the copies
  std::vector<CopyRun> runs_;                ///< from the pieces to there
  std::int64_t bytes_ = 0;
  std::vector<std::vector<ManifestTensor>> entries_;  ///< rank 0: of every rank, in the order of its datasets
  Phase phase_ = Phase::Idle;
  std::int64_t step_ = 0;
  CheckpointMeta meta_;
  double write_seconds_ = 0;
  std::set<std::int64_t> written_;  ///< steps, by this object
  double commit_seconds_ = 0;       ///< written by the I/O thread, read when it has finished
  std::future<WrittenShard> writing_;
  std::future<CommittedCheckpoint> committing_;  ///< rank 0
};

}  // namespace emox
