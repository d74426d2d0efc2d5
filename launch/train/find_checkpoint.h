// Which checkpoint a command's RUN|CHECKPOINT argument means.
#pragma once

#include <filesystem>
#include <optional>
#include <vector>

#include "launch/train/session.h"
#include "parallel/checkpoint/fault.h"
#include "parallel/checkpoint/verify.h"

namespace emox {

struct FoundCheckpoint {
  std::filesystem::path path;  ///< links resolved: the step's own directory
  Manifest manifest;
  bool verified = false;  ///< every byte has been read and is what the manifest says
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

/// Collective. find_latest for people: a checkpoint that cannot be read, or has another format version, and is newer
/// than every intact one, is a UsageError.
std::optional<CheckpointInfo> newest_checkpoint(Session& session, const std::filesystem::path& checkpoints,
                                                Glance glance = Glance::Content);

/// Collective. A checkpoint directory, or a link to one, means itself; a run directory (or its checkpoints/) the newest
/// checkpoint that is intact: damaged ones that are newer are passed over and logged. UsageError when there is none,
/// and as newest_checkpoint.
FoundCheckpoint find_checkpoint(Session& session, const std::filesystem::path& argument,
                                Glance glance = Glance::Content);

/// Collective. Itself for a checkpoint directory; all of a run's, oldest first, intact or not. UsageError when there is
/// none.
std::vector<std::filesystem::path> all_checkpoints(Session& session, const std::filesystem::path& argument);

/// RUN/checkpoints, or the argument itself where it holds the checkpoints. UsageError when it does not exist.
std::filesystem::path checkpoints_directory(const std::filesystem::path& argument);

}  // namespace emox
