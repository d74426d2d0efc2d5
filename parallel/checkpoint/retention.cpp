// Which checkpoints are good, which is the newest of those, and which may go.
#include <system_error>

#include "parallel/checkpoint/agreement.h"
#include "parallel/checkpoint/checkpoint.h"
#include "parallel/checkpoint/checksum.h"
#include "parallel/checkpoint/layout.h"
#include "parallel/checkpoint/verify.h"
#include "runtime/core/error.h"
#include "runtime/telemetry/log.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

/// The manifest when everything passes, otherwise why not.
struct Verdict {
  std::optional<Manifest> manifest;
  std::string why_not;
};

Verdict judge(const fs::path& checkpoint) {
  try {
    return {verify_checkpoint(checkpoint), ""};
  } catch (const Error& e) {
    return {std::nullopt, e.message()};
  } catch (const fs::filesystem_error& e) {
    return {std::nullopt, e.what()};
  }
}

/// As judge, without reading the files' content.
bool looks_complete(const fs::path& checkpoint) {
  try {
    for (const ManifestFile& f : read_manifest(checkpoint).files) check_file_size(checkpoint, f);
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

/// Renamed first, so that an interrupted removal leaves something that is plainly unfinished.
void remove_checkpoint(const fs::path& path) {
  const fs::path doomed = path.string() + ".tmp-removed";
  fs::remove_all(doomed);
  fs::rename(path, doomed);
  fs::remove_all(doomed);
}

}  // namespace

void check_step(const fs::path& checkpoint, const Manifest& manifest) {
  const std::optional<std::int64_t> step = step_of_directory(checkpoint.filename().string());
  require<IoError>(!step || *step == manifest.step, "{} holds step {}", checkpoint.string(), manifest.step);
}

void check_file_size(const fs::path& checkpoint, const ManifestFile& file) {
  const fs::path path = checkpoint / file.name;
  std::error_code error;
  const auto bytes = fs::file_size(path, error);
  require<IoError>(!error, "{} is missing or cannot be read: {}", path.string(), error.message());
  require<IoError>(static_cast<std::int64_t>(bytes) == file.bytes, "{} is damaged: {} bytes, the manifest says {}",
                   path.string(), bytes, file.bytes);
}

void check_file_content(const fs::path& checkpoint, const ManifestFile& file) {
  const fs::path path = checkpoint / file.name;
  const std::string checksum = checksum_of_file(path);
  require<IoError>(checksum == file.checksum, "{} is damaged: checksum {}, the manifest says {}", path.string(),
                   checksum, file.checksum);
}

Manifest verify_checkpoint(const fs::path& path) {
  Manifest manifest = read_manifest(path);
  check_step(path, manifest);
  for (const ManifestFile& f : manifest.files) check_file_size(path, f);
  for (const ManifestFile& f : manifest.files) check_file_content(path, f);
  return manifest;
}

std::optional<CheckpointInfo> find_latest(const fs::path& directory, Log* log) {
  for (const fs::path& path : list_checkpoints(directory)) {
    Verdict verdict = judge(path);
    if (verdict.manifest) return CheckpointInfo{path, *std::move(verdict.manifest)};
    if (log != nullptr) log->warn("skipping the checkpoint {}: {}", path.string(), verdict.why_not);
  }
  return std::nullopt;
}

std::optional<CheckpointInfo> find_latest(Communicator& comm, const fs::path& directory, Log* log) {
  std::string path;
  run_together(comm, [&] {
    if (comm.rank() != 0) return;
    if (const auto found = find_latest(directory, log)) path = found->path.string();
  });
  path = broadcast_text(comm, path, 0);
  if (path.empty()) return std::nullopt;
  CheckpointInfo info{path, {}};
  run_together(comm, [&] { info.manifest = read_manifest(path); });
  return info;
}

std::vector<fs::path> prune_checkpoints(const fs::path& directory, int keep_last, std::int64_t keep_every_steps) {
  const std::vector<fs::path> all = list_checkpoints(directory);  // newest first
  std::vector<fs::path> candidates;
  int complete = 0;
  for (const fs::path& path : all) {
    // A damaged one must not push a complete one out of the last few.
    if (complete < keep_last) {
      complete += looks_complete(path) ? 1 : 0;
      continue;
    }
    const std::int64_t step = *step_of_directory(path.filename().string());
    if (keep_every_steps <= 0 || step % keep_every_steps != 0) candidates.push_back(path);
  }
  if (candidates.empty()) return {};
  // Reading whole checkpoints is worth it only now that something is to go.
  const auto good = find_latest(directory, nullptr);
  std::vector<fs::path> removed;
  if (!good) return removed;
  for (const fs::path& path : candidates) {
    if (*step_of_directory(path.filename().string()) >= good->manifest.step) continue;
    remove_checkpoint(path);
    removed.push_back(path);
  }
  return removed;
}

void remove_unfinished_checkpoints(const fs::path& directory) {
  if (!fs::is_directory(directory)) return;
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(directory))
    if (is_unfinished(entry.path().filename().string())) found.push_back(entry.path());
  for (const fs::path& path : found) fs::remove_all(path);
}

}  // namespace emox
