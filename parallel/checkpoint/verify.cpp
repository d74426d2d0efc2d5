// Which checkpoints are good, and which is the newest of those.
#include "parallel/checkpoint/verify.h"

#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "parallel/checkpoint/checksum.h"
#include "parallel/checkpoint/layout.h"
#include "parallel/comm/progress.h"
#include "parallel/comm/together.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/files/file_error.h"
#include "runtime/files/files.h"
#include "runtime/telemetry/log.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

constexpr const char* kNotPassedOver =
    "It is not known to be damaged, so it is neither passed over nor replaced; to go on from an older one, move it "
    "away";

}  // namespace

void check_step(const fs::path& checkpoint, const Manifest& manifest) {
  const auto step = step_of_directory(checkpoint.filename().string());
  require<DamagedError>(!step || *step == manifest.step, "{} holds step {}", checkpoint.string(), manifest.step);
}

void check_file_size(const fs::path& checkpoint, const ManifestFile& file) {
  const fs::path path = checkpoint / file.name;
  const std::int64_t bytes = bytes_of_file(path);
  require<DamagedError>(bytes == file.bytes, "{} is damaged: {} bytes, the manifest says {}", path.string(), bytes,
                        file.bytes);
}

void check_file(const fs::path& checkpoint, const ManifestFile& file, Glance glance) {
  check_file_size(checkpoint, file);
  const fs::path path = checkpoint / file.name;
  if (glance == Glance::Sizes) return check_readable(path);
  const std::string checksum = checksum_of_file(path);
  require<DamagedError>(checksum == file.checksum, "{} is damaged: checksum {}, the manifest says {}", path.string(),
                        checksum, file.checksum);
}

namespace {

/// The text of a checkpoint's manifest, on rank 0.
std::string read_manifest_text(Communicator& comm, const fs::path& path) {
  std::string text;
  run_together(comm, [&] {
    if (comm.rank() == 0) text = read_text((path / "manifest.json").string());
  });
  return text;
}

/// The content of a text that rank 0 has, on the ranks that have it.
Manifest parse(Communicator& comm, const fs::path& path, const std::string& text) {
  Manifest manifest;
  run_together(comm, [&] {
    if (text.empty() && comm.rank() != 0) return;
    manifest = parse_manifest(text, (path / "manifest.json").string());
    check_step(path, manifest);
  });
  return manifest;
}

std::string text_of(std::span<const ManifestFile> files, std::size_t first, std::size_t every) {
  nlohmann::json all = nlohmann::json::array();
  for (std::size_t i = first; i < files.size(); i += every)
    all.push_back({files[i].name, files[i].bytes, files[i].checksum});
  return all.dump();
}

std::vector<ManifestFile> files_from(const std::string& text) {
  std::vector<ManifestFile> files;
  for (const auto& f : nlohmann::json::parse(text)) files.push_back({f.at(0), f.at(1), f.at(2)});
  return files;
}

}  // namespace

Manifest read_manifest_of(Communicator& comm, const fs::path& path) {
  Manifest manifest = parse(comm, path, read_manifest_text(comm, path));
  Manifest head = manifest;
  head.files.clear(), head.tensors.clear();
  const std::string text = broadcast_text(comm, comm.rank() == 0 ? manifest_text(head) : "");
  if (comm.rank() != 0) manifest = parse_manifest(text, (path / "manifest.json").string());
  return manifest;
}

Manifest read_manifest_together(Communicator& comm, const fs::path& path) {
  return parse(comm, path, broadcast_text(comm, read_manifest_text(comm, path)));
}

Manifest manifest_everywhere(Communicator& comm, const fs::path& path, const Manifest& manifest) {
  return parse(comm, path, broadcast_text(comm, comm.rank() == 0 ? manifest_text(manifest) : ""));
}

Manifest verify_checkpoint(Communicator& comm, const fs::path& path, Glance glance) {
  Manifest manifest = read_manifest_of(comm, path);
  std::vector<std::string> shares;
  const auto ranks = idx(comm.size());
  for (std::size_t r = 0; comm.rank() == 0 && r < ranks; ++r) shares.push_back(text_of(manifest.files, r, ranks));
  const std::vector<ManifestFile> own = files_from(scatter_texts(comm, shares));
  const auto for_own_files = [&](const auto& check) {
    for (const ManifestFile& file : own) {
      check(file);
      report_progress(comm);
    }
  };
  // Sizes are cheap: a missing or short file is told before gigabytes are read.
  run_together(comm, [&] { for_own_files([&](const ManifestFile& file) { check_file_size(path, file); }); });
  run_together(comm, [&] { for_own_files([&](const ManifestFile& file) { check_file(path, file, glance); }); });
  return manifest;
}

bool passes(Communicator& comm, const fs::path& checkpoint, Log* log, const std::function<void()>& look) {
  try {
    look();
    return true;
  } catch (const DamagedError& e) {
    if (log != nullptr && comm.rank() == 0)
      log->warn("skipping the checkpoint {}: {}", checkpoint.string(), e.message());
    return false;
  } catch (const UnreadableError& e) {
    fail<UnreadableError>("the checkpoint {} cannot be read: {}. {}", checkpoint.string(), e.message(), kNotPassedOver);
  } catch (const OtherVersionError& e) {
    fail<OtherVersionError>("{}. {}", e.message(), kNotPassedOver);
  }
}

std::optional<CheckpointInfo> find_latest(Communicator& comm, const fs::path& directory, Log* log, Glance glance,
                                          std::optional<std::int64_t> before) {
  std::string names;
  run_together(comm, [&] {
    if (comm.rank() != 0) return;
    try {
      for (const fs::path& path : list_checkpoints(directory))
        if (!before || *step_of_directory(path.filename().string()) < *before) names += path.string() + '\0';
    } catch (const fs::filesystem_error& e) {
      fail_to_read("look into", e.path1(), e.code().value());
    }
  });
  std::istringstream lines(broadcast_text(comm, names));
  for (std::string path; std::getline(lines, path, '\0');) {
    CheckpointInfo found{path, {}};
    if (passes(comm, path, log, [&] { found.manifest = verify_checkpoint(comm, path, glance); })) return found;
  }
  return std::nullopt;
}

Manifest verify_checkpoint(Communicator& comm, const fs::path& path) {
  return verify_checkpoint(comm, path, Glance::Content);
}

std::optional<CheckpointInfo> find_latest(Communicator& comm, const fs::path& directory, Log* log) {
  return find_latest(comm, directory, log, Glance::Content);
}

}  // namespace emox
