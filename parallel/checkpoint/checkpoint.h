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
  TensorView view;  ///< host memory unless it is said, end - begin elements of any shape
};

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
  Manifest manifest;  ///< `files` and `tensors` on rank 0 alone: of a thousand ranks they are many
};

/// Collective. Writes `directory`/step-NNNNNNNN, moving one that is there aside, and returns its path: one save of a
/// CheckpointSaver (saver.h), which says what is asked of the pieces and what happens when something fails.
std::filesystem::path save_checkpoint(Communicator& comm, const std::filesystem::path& directory, std::int64_t step,
                                      std::span<const CheckpointPiece> pieces, const CheckpointMeta& meta);

/// Collective. Reads the manifest and every file of the checkpoint, each on one of the ranks. Throws, on all ranks, an
/// error of file_error.h that names a file which is damaged, not readable or of another version; else returns the
/// manifest, as CheckpointInfo has it.
Manifest verify_checkpoint(Communicator& comm, const std::filesystem::path& path);

/// The newest checkpoint in `directory` whose manifest and files are all intact, verified as above. Says through `log`
/// (may be null) which newer ones were passed over: damaged ones. Throws (file_error.h) at one that cannot be read or
/// has another version. Nothing when there is none. Collective; rank 0's `directory` counts.
std::optional<CheckpointInfo> find_latest(Communicator& comm, const std::filesystem::path& directory, Log* log);

/// What a load read of a checkpoint's files.
struct LoadReport {
  std::int64_t bytes = 0;  ///< by this rank
  std::int64_t files = 0;
  std::int64_t all_bytes = 0;  ///< by all ranks together
  std::int64_t all_files = 0;
};

/// Needed: files that hold nothing that is wanted are neither read nor verified.
enum class FilesToRead : std::uint8_t { All, Needed };

/// Collective. Fills every rank's pieces from a checkpoint, however it was cut and whatever number of ranks wrote it;
/// ranks may want different, overlapping or no elements. Every file is read once by one rank, from the first byte to
/// the last, verified on the way, and what others want is handed on to them: each rank should want what it owns. Beside
/// the pieces it takes 4 MiB, and as much as a rank gets from others at a time. Errors of file_error.h, on all ranks,
/// that name a file which is damaged or not readable; IoError: a missing array, another shape (both shapes), another
/// element type. Memory is written to only after arrays, shapes and types have been checked for all pieces, and holds
/// anything after a failure. `found.manifest` counts on rank 0.
LoadReport load_checkpoint(Communicator& comm, const CheckpointInfo& found, std::span<const CheckpointPiece> wanted,
                           FilesToRead which = FilesToRead::All);

/// Collective. The same of the checkpoint in `path`; returns its manifest, as read_manifest_of (verify.h).
Manifest load_checkpoint(Communicator& comm, const std::filesystem::path& path,
                         std::span<const CheckpointPiece> wanted);

/// The old checkpoints that may go, newest first, on one rank. Kept are the newest `keep_last`, those whose step is a
/// multiple of `keep_every_steps` (0: none), the newest intact one, everything newer (without an intact one, all), and
/// what cannot be read or has another version. `intact`: the step of one known to be so; else found as by find_latest.
std::vector<std::filesystem::path> prunable_checkpoints(const std::filesystem::path& directory, int keep_last,
                                                        std::int64_t keep_every_steps,
                                                        std::optional<std::int64_t> intact = std::nullopt);
/// Removes them and returns what was removed.
std::vector<std::filesystem::path> prune_checkpoints(const std::filesystem::path& directory, int keep_last,
                                                     std::int64_t keep_every_steps,
                                                     std::optional<std::int64_t> intact = std::nullopt);

/// Removes what crashed saves and removals left in `directory`, on one rank.
void remove_unfinished_checkpoints(const std::filesystem::path& directory);

}  // namespace emox
