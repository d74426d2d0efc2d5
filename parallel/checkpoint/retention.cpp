// Which checkpoints may go.
#include <system_error>

#include "parallel/checkpoint/checkpoint.h"
#include "parallel/checkpoint/layout.h"
#include "parallel/checkpoint/verify.h"
#include "parallel/comm/factory.h"
#include "runtime/files/file_error.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

enum class Look { Complete, Damaged, Unknown };

/// Without reading the files' content. Unknown: some of it cannot be read, or it has another format version.
Look look_at(const fs::path& checkpoint) {
  try {
    for (const ManifestFile& f : read_manifest(checkpoint).files) check_file(checkpoint, f, Glance::Sizes);
    return Look::Complete;
  } catch (const DamagedError&) {
    return Look::Damaged;
  } catch (const std::exception&) {
    return Look::Unknown;
  }
}

std::optional<std::int64_t> newest_intact(const fs::path& directory) {
  const auto alone = make_self_communicator();
  const auto found = find_latest(*alone, directory, nullptr);
  return found ? std::optional(found->manifest.step) : std::nullopt;
}

/// Renamed first, so that an interrupted removal leaves something that is plainly unfinished.
void remove_checkpoint(const fs::path& path) {
  const fs::path doomed = path.string() + ".tmp-removed";
  fs::remove_all(doomed);
  fs::rename(path, doomed);
  fs::remove_all(doomed);
}

}  // namespace

std::vector<fs::path> prunable_checkpoints(const fs::path& directory, int keep_last, std::int64_t keep_every_steps,
                                           std::optional<std::int64_t> intact) {
  const std::vector<fs::path> all = list_checkpoints(directory);  // newest first
  std::vector<fs::path> candidates;
  int complete = 0;
  for (const fs::path& path : all) {
    // A damaged one must not push a complete one out of the last few.
    const std::int64_t step = *step_of_directory(path.filename().string());
    if (complete < keep_last) {
      // What has just been saved need not be read again.
      complete += step == intact || look_at(path) == Look::Complete ? 1 : 0;
      continue;
    }
    if (keep_every_steps <= 0 || step % keep_every_steps != 0) candidates.push_back(path);
  }
  if (candidates.empty()) return {};
  // Reading whole checkpoints is worth it only now that something is to go.
  if (!intact) intact = newest_intact(directory);
  if (!intact) return {};
  std::erase_if(candidates, [&](const fs::path& p) { return *step_of_directory(p.filename().string()) >= *intact; });
  std::erase_if(candidates, [](const fs::path& p) { return look_at(p) == Look::Unknown; });
  return candidates;
}

std::vector<fs::path> prune_checkpoints(const fs::path& directory, int keep_last, std::int64_t keep_every_steps,
                                        std::optional<std::int64_t> intact) {
  std::vector<fs::path> doomed = prunable_checkpoints(directory, keep_last, keep_every_steps, intact);
  for (const fs::path& path : doomed) remove_checkpoint(path);
  return doomed;
}

void remove_unfinished_checkpoints(const fs::path& directory) {
  if (!fs::is_directory(directory)) return;
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(directory))
    if (is_unfinished(entry.path().filename().string())) found.push_back(entry.path());
  for (const fs::path& path : found) fs::remove_all(path);
}

}  // namespace emox
