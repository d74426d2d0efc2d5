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

/// One parameter under its published name, e.g. model.layers.0.mlp.experts.3.gate_proj.weight, with its optimizer
/// moments. Both moments may be null (weights alone); otherwise they have the weight's shape. Host memory.
struct CheckpointTensor {
  std::string name;
  TensorView weight, exp_avg, exp_avg_sq;
};

/// What is saved besides the tensors.
struct CheckpointMeta {
  std::int64_t tokens = 0;
  std::uint64_t seed = 0;
  std::string recipe;                               ///< the resolved recipe's text
  nlohmann::json extra = nlohmann::json::object();  ///< anything else the caller must find again
};

struct CheckpointInfo {
  std::filesystem::path path;
  Manifest manifest;
};

/// Collective; every rank holds the same tensors. Writes `directory`/step-NNNNNNNN, replacing one that is there, and
/// returns its path. Ranks share the writing by bytes. When any rank fails, all throw an IoError with that rank's
/// message, nothing of this step stays behind, and earlier checkpoints are as they were. Leftovers of crashed saves are
/// removed first.
std::filesystem::path save_checkpoint(Communicator& comm, const std::filesystem::path& directory, std::int64_t step,
                                      std::span<const CheckpointTensor> tensors, const CheckpointMeta& meta);

/// Collective. Fills the tensors from the checkpoint in `path`, whatever number of ranks wrote it; tensors of the
/// checkpoint that the list does not name are left out. Every file's checksum is verified, once across the job, before
/// HDF5 opens it. IoError, on all ranks: a damaged file (named), a missing tensor, another shape (both shapes), another
/// element type; the tensors are written to only after all names and shapes have been found to fit.
Manifest load_checkpoint(Communicator& comm, const std::filesystem::path& path,
                         std::span<const CheckpointTensor> tensors);

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
