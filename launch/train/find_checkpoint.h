// Which checkpoint a command's RUN|CHECKPOINT argument means.
#pragma once

#include <filesystem>
#include <vector>

#include "launch/train/session.h"

namespace emox {

struct FoundCheckpoint {
  std::filesystem::path path;  ///< links resolved: the step's own directory
  bool verified = false;       ///< every byte has been read and is what the manifest says
};

/// How well a run's newest checkpoint is looked at before it counts as intact.
enum class Glance { Content, Sizes };

/// Collective. A checkpoint directory, or a link to one, means itself; a run directory (or its checkpoints/) the newest
/// checkpoint that is intact. UsageError when there is none. Newer ones that are passed over are logged.
FoundCheckpoint find_checkpoint(Session& session, const std::filesystem::path& argument,
                                Glance glance = Glance::Content);

/// Collective. Itself for a checkpoint directory; all of a run's, oldest first, intact or not. UsageError when there is
/// none.
std::vector<std::filesystem::path> all_checkpoints(Session& session, const std::filesystem::path& argument);

/// RUN/checkpoints, or the argument itself where it holds the checkpoints. UsageError when it does not exist.
std::filesystem::path checkpoints_directory(const std::filesystem::path& argument);

}  // namespace emox
