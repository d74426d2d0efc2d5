#include "launch/train/find_checkpoint.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "launch/train/run_directory.h"
#include "parallel/checkpoint/agreement.h"
#include "parallel/checkpoint/layout.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

/// Follows a link such as checkpoints/latest, so that messages name the step.
fs::path resolved(const fs::path& argument) {
  fs::path path = argument.has_filename() ? argument : argument.parent_path();
  constexpr int kMaxLinks = 40;  // as the system
  std::error_code ignored;
  for (int i = 0; i < kMaxLinks && fs::is_symlink(path, ignored); ++i)
    path = path.parent_path() / fs::read_symlink(path);
  require<UsageError>(fs::exists(path, ignored), "{} does not exist: give a run directory or one of its checkpoints",
                      path.string());
  return path.lexically_normal();
}

bool is_checkpoint(const fs::path& path) {
  return fs::exists(path / "manifest.json") || step_of_directory(path.filename().string()).has_value();
}

}  // namespace

fs::path checkpoints_directory(const fs::path& argument) {
  const fs::path path = resolved(argument);
  return fs::is_directory(path / "checkpoints") ? path / "checkpoints" : path;
}

std::optional<CheckpointInfo> newest_checkpoint(Session& session, const fs::path& checkpoints, Glance glance) {
  return refusing_unusable([&] { return find_latest(session.comm(), checkpoints, &session.log(), glance); });
}

FoundCheckpoint find_checkpoint(Session& session, const fs::path& argument, Glance glance) {
  // What rank 0 sees decides for all: the search is collective, and files of other nodes may be behind.
  std::string checkpoint, directory;
  on_root(session, [&] {
    const fs::path path = resolved(argument);
    if (!is_checkpoint(path)) {
      directory = checkpoints_directory(path).string();
      return;
    }
    require<UsageError>(fs::exists(path / "manifest.json"), "{} has no manifest.json: it is not a complete checkpoint",
                        path.string());
    checkpoint = path.string();
  });
  checkpoint = broadcast_text(session.comm(), checkpoint, 0);
  directory = broadcast_text(session.comm(), directory, 0);
  if (!checkpoint.empty())
    return {checkpoint, refusing_unusable([&] { return read_manifest_together(session.comm(), checkpoint); }), false};
  auto found = newest_checkpoint(session, directory, glance);
  require<UsageError>(found.has_value(), "{} holds no intact checkpoint (looked in {})", argument.string(), directory);
  return {found->path, std::move(found->manifest), glance == Glance::Content};
}

std::vector<fs::path> all_checkpoints(Session& session, const fs::path& argument) {
  // Rank 0's list: a run that goes on changes what there is.
  std::string names;
  on_root(session, [&] {
    const fs::path path = resolved(argument);
    for (const fs::path& found :
         is_checkpoint(path) ? std::vector{path} : list_checkpoints(checkpoints_directory(path)))
      names += found.string() + '\0';
    require<UsageError>(!names.empty(), "{} holds no checkpoints (looked in {})", argument.string(),
                        checkpoints_directory(path).string());
  });
  names = broadcast_text(session.comm(), names, 0);
  std::vector<fs::path> all;
  for (std::size_t at = 0; at < names.size(); at = names.find('\0', at) + 1) all.emplace_back(names.c_str() + at);
  std::reverse(all.begin(), all.end());
  return all;
}

}  // namespace emox
