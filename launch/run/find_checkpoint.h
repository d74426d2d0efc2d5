// Which checkpoint a command's RUN|CHECKPOINT argument means.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <vector>

#include "launch/run/session.h"
#include "parallel/checkpoint/verify.h"
#include "runtime/files/file_error.h"

namespace emox {

struct FoundCheckpoint {
  std::filesystem::path path;  ///< links resolved: the step's own directory
  Manifest manifest;           ///< as CheckpointInfo has it
  bool named = false;          ///< itself, not found as a run's newest
};

/// What is found before anything has begun: a checkpoint that cannot be read, or has another format version, is a
/// UsageError.
template <typename Body>
auto refusing_unusable(const Body& body) {
  try {
    return body();
  } catch (const UnreadableError& e) {
    fail<UsageError>("{}", e.message());
  } catch (const OtherVersionError& e) {
    fail<UsageError>("{}", e.message());
  }
}

/// Collective. A checkpoint directory, or a link to one, means itself; a run directory (or its checkpoints/) the newest
/// checkpoint that is intact: damaged ones that are newer are passed over and logged. UsageError when there is none,
/// and when a newer one cannot be read or has another format version.
FoundCheckpoint find_checkpoint(Session& session, const std::filesystem::path& argument,
                                Glance glance = Glance::Content);

/// What is to be loaded from a checkpoint that was found; may be called for several, the last of which counts.
using PiecesFor = std::function<std::vector<CheckpointPiece>(const FoundCheckpoint&)>;

/// Collective. find_checkpoint, and loading, which reads and verifies each byte once: when the newest checkpoint of a
/// run turns out to be damaged, it is passed over for the next one. Throws as find_checkpoint; an IoError of
/// load_checkpoint for pieces that are not there.
FoundCheckpoint load_found(Session& session, const std::filesystem::path& argument, const PiecesFor& pieces_for,
                           LoadReport* report = nullptr);
/// Collective. The same of the checkpoints in one directory; nothing when there is no intact one.
std::optional<FoundCheckpoint> load_newest(Session& session, const std::filesystem::path& checkpoints,
                                           const PiecesFor& pieces_for, LoadReport* report = nullptr);

/// Collective. Itself for a checkpoint directory; all of a run's, oldest first, intact or not. UsageError when there is
/// none.
std::vector<std::filesystem::path> all_checkpoints(Session& session, const std::filesystem::path& argument);

/// RUN/checkpoints, or the argument itself where it holds the checkpoints. UsageError when it does not exist.
std::filesystem::path checkpoints_directory(const std::filesystem::path& argument);

}  // namespace emox
