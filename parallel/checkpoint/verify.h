// Whether the files of a checkpoint are what its manifest says. The errors are those of file_error.h and name the file.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>

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
/// The file has its checksum.
void check_file_content(const std::filesystem::path& checkpoint, const ManifestFile& file);

}  // namespace emox
