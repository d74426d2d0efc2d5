// Which checkpoints are good, and which is the newest of those.
#include "parallel/checkpoint/verify.h"

#include <sstream>
#include <system_error>

#include "parallel/checkpoint/agreement.h"
#include "parallel/checkpoint/checkpoint.h"
#include "parallel/checkpoint/checksum.h"
#include "parallel/checkpoint/durable_file.h"
#include "parallel/checkpoint/layout.h"
#include "runtime/core/error.h"
#include "runtime/telemetry/log.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

/// The checkpoint's manifest on every rank; one of them reads it.
Manifest share_manifest(Communicator& comm, const fs::path& path) {
  std::string text;
  const std::string file = (path / "manifest.json").string();
  run_together(comm, [&] {
    if (comm.rank() == 0) text = read_text_file(file);
  });
  text = broadcast_text(comm, text, 0);
  Manifest manifest;
  run_together(comm, [&] {
    manifest = parse_manifest(text, file);
    const std::optional<std::int64_t> step = step_of_directory(path.filename().string());
    require<IoError>(!step || *step == manifest.step, "{} holds step {}", path.string(), manifest.step);
  });
  return manifest;
}

}  // namespace

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

Manifest verify_checkpoint(Communicator& comm, const fs::path& path) {
  Manifest manifest = share_manifest(comm, path);
  const auto for_my_files = [&](const auto& check) {
    const auto ranks = static_cast<std::size_t>(comm.size());
    for (auto i = static_cast<std::size_t>(comm.rank()); i < manifest.files.size(); i += ranks)
      check(path, manifest.files[i]);
  };
  // Sizes are cheap: a missing or short file is told before gigabytes are read.
  run_together(comm, [&] { for_my_files(check_file_size); });
  run_together(comm, [&] { for_my_files(check_file_content); });
  return manifest;
}

std::optional<CheckpointInfo> find_latest(Communicator& comm, const fs::path& directory, Log* log) {
  std::string names;
  run_together(comm, [&] {
    if (comm.rank() != 0) return;
    for (const fs::path& path : list_checkpoints(directory)) names += path.string() + '\0';
  });
  std::istringstream lines(broadcast_text(comm, names, 0));
  for (std::string path; std::getline(lines, path, '\0');) {
    try {
      return CheckpointInfo{path, verify_checkpoint(comm, path)};
    } catch (const IoError& e) {
      if (log != nullptr && comm.rank() == 0) log->warn("skipping the checkpoint {}: {}", path, e.message());
    }
  }
  return std::nullopt;
}

}  // namespace emox
