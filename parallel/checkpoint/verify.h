// Whether a checkpoint is what its manifest says: whether its files are, which one is the newest intact one, and all
// that is wrong with it. The errors are those of file_error.h and name the file.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "parallel/checkpoint/checkpoint.h"

namespace emox {

/// How well a checkpoint is looked at before it counts as intact. Sizes: that its files are there with their sizes and
/// may be read.
enum class Glance : std::uint8_t { Content, Sizes };

/// Collective. The checkpoint's manifest, as rank 0 reads it; `files` and `tensors` stay there. Throws as
/// verify_checkpoint.
Manifest read_manifest_of(Communicator& comm, const std::filesystem::path& path);
/// Collective. All of it on every rank, for tools that share out the arrays. Throws as verify_checkpoint.
Manifest read_manifest_together(Communicator& comm, const std::filesystem::path& path);
/// Collective. All of rank 0's `manifest` on every rank; it is read again from there.
Manifest manifest_everywhere(Communicator& comm, const std::filesystem::path& path, const Manifest& manifest);

/// verify_checkpoint and find_latest (checkpoint.h), with less care where Sizes is enough. `before`: only checkpoints
/// of earlier steps count; nothing: all.
Manifest verify_checkpoint(Communicator& comm, const std::filesystem::path& path, Glance glance);
std::optional<CheckpointInfo> find_latest(Communicator& comm, const std::filesystem::path& directory, Log* log,
                                          Glance glance, std::optional<std::int64_t> before = std::nullopt);

/// Collective. Whether `look` finds the checkpoint usable: false, and said through `log` (may be null), when it throws
/// a DamagedError; an UnreadableError or OtherVersionError says besides that such a checkpoint is never passed over.
bool passes(Communicator& comm, const std::filesystem::path& checkpoint, Log* log, const std::function<void()>& look);

/// A directory with the name of a step holds that step.
void check_step(const std::filesystem::path& checkpoint, const Manifest& manifest);
/// The file is there and has its size.
void check_file_size(const std::filesystem::path& checkpoint, const ManifestFile& file);
/// The same, and that it has its checksum, or for Sizes may be read.
void check_file(const std::filesystem::path& checkpoint, const ManifestFile& file, Glance glance = Glance::Content);

/// DamagedError, on all ranks, when any of the checkpoint's files of these names is missing or has another size or
/// checksum: HDF5 must not see it then. UnreadableError when one cannot be read. Each file is read by one rank.
void verify_files(Communicator& comm, const std::filesystem::path& checkpoint, const Manifest& manifest,
                  const std::vector<std::string>& names);

/// What reading every byte of a checkpoint showed.
struct CheckpointSurvey {
  std::filesystem::path path;
  std::vector<std::string> damage;   ///< all of it, each message naming its file
  std::vector<std::string> unknown;  ///< what could not be read, or has another format version: it may be good
  std::int64_t files = 0, bytes = 0, datasets = 0;
  double seconds = 0;
  bool intact() const { return damage.empty() && unknown.empty(); }
};

/// The manifest (its checksum, its fields, that its pieces make whole arrays), then sizes and checksums of all files,
/// then shape, type and checksum of every dataset in files that passed. What is wrong is returned, never thrown, and
/// the same on all ranks.
CheckpointSurvey survey_checkpoint(Communicator& comm, const std::filesystem::path& checkpoint);

}  // namespace emox
