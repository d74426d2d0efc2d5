// Checkpoints of a training run: saved so that a crash at any moment leaves the earlier ones whole, loaded on any
// number of ranks, and refused, by file name, when a byte is wrong (design 4.8). README.md shows the layout.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "parallel/checkpoint/manifest.h"
#include "parallel/comm/communicator.h"
#include "runtime/core/tensor.h"

namespace emox {

class Log;

/// Elements [begin, end) of a flattened array: of the weight or of one of the optimizer's moments of the parameter with
/// this published name, e.g. model.layers.0.mlp.experts.3.gate_proj.weight.
struct CheckpointPiece {
  std::string name;
  std::string role;  ///< "weight", "exp_avg", "exp_avg_sq"
  Shape shape;       ///< the whole array's
  std::int64_t begin = 0, end = 0;
  TensorView view;  ///< host memory, end - begin elements of any shape
};

/// Adds the arrays of a parameter, each one whole piece; null moments are left out.
void add_whole(std::vector<CheckpointPiece>& pieces, const std::string& name, const TensorView& weight,
               const TensorView& exp_avg = {}, const TensorView& exp_avg_sq = {});

/// This rank's share of pieces that all ranks hold alike (the same list on each). Experts, never cut, and other tensors
/// go, largest first, to the rank with the fewest bytes so far.
std::vector<CheckpointPiece> divide_among_ranks(std::span<const CheckpointPiece> pieces, int rank, int size);

/// What is saved besides the tensors.
struct CheckpointMeta {
  std::int64_t tokens = 0;
  std::uint64_t seed = 0;
  std::string recipe;                                  ///< the resolved recipe's text
  nlohmann::json extra = nlohmann::json::object();     ///< anything else the caller must find again
  nlohmann::json placement = nullptr, mesh = nullptr;  ///< as in Manifest
};

struct CheckpointInfo {
  std::filesystem::path path;
  Manifest manifest;
};

/// Collective; every rank gives the pieces that it alone writes, or none. Writes `directory`/step-NNNNNNNN, replacing
/// one that is there, and returns its path. All pieces together must hold every element of every array that occurs in
/// them exactly once, a parameter's both moments or none, and moments of the weight's shape. When that fails, or any
/// rank does, all throw an IoError with that rank's message (array, elements and ranks are named), nothing of this step
/// stays behind, and earlier checkpoints are as they were. Leftovers of crashed saves are removed first. `meta` is rank
/// 0's.
std::filesystem::path save_checkpoint(Communicator& comm, const std::filesystem::path& directory, std::int64_t step,
                                      std::span<const CheckpointPiece> mine, const CheckpointMeta& meta);

/// Collective. Fills every rank's pieces from the checkpoint in `path`, however it was cut and whatever number of ranks
/// wrote it; ranks may want different, overlapping or no elements. Every file's checksum is verified, once across the
/// job, before HDF5 opens it; then a rank reads what overlaps its pieces, straight into them. IoError, on all ranks: a
/// damaged file (named), a missing array, another shape (both shapes), another element type; memory is written to only
/// after all of this has been checked for all pieces.
Manifest load_checkpoint(Communicator& comm, const std::filesystem::path& path,
                         std::span<const CheckpointPiece> wanted);

/// The newest checkpoint in `directory` whose manifest and files are all intact. Says through `log` (may be null) which
/// newer ones were passed over and why. Nothing when there is none. Reads every byte of what it looks at.
std::optional<CheckpointInfo> find_latest(const std::filesystem::path& directory, Log* log);
/// The same, collective: rank 0 looks, and every rank gets its answer.
std::optional<CheckpointInfo> find_latest(Communicator& comm, const std::filesystem::path& directory, Log* log);

/// Throws an IoError that names the first file of the checkpoint that is missing or damaged; returns the manifest
/// otherwise.
Manifest verify_checkpoint(const std::filesystem::path& path);

/// Removes old checkpoints, on one rank. Kept: the newest `keep_last`, those whose step is a multiple of
/// `keep_every_steps` (0: none), the newest intact one, and everything newer than that. Without an intact one nothing
/// is removed. Returns what was removed.
std::vector<std::filesystem::path> prune_checkpoints(const std::filesystem::path& directory, int keep_last,
                                                     std::int64_t keep_every_steps);

/// Removes what crashed saves and removals left in `directory`, on one rank.
void remove_unfinished_checkpoints(const std::filesystem::path& directory);

}  // namespace emox
