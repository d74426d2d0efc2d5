// Which checkpoints are good, and which is the newest of those.
#include "parallel/checkpoint/verify.h"

#include <sstream>

#include "parallel/checkpoint/agreement.h"
#include "parallel/checkpoint/checksum.h"
#include "parallel/checkpoint/durable_file.h"
#include "parallel/checkpoint/fault.h"
#include "parallel/checkpoint/layout.h"
#include "parallel/comm/progress.h"
#include "runtime/core/error.h"
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

void check_file_content(const fs::path& checkpoint, const ManifestFile& file) {
  const fs::path path = checkpoint / file.name;
  const std::string checksum = checksum_of_file(path);
  require<DamagedError>(checksum == file.checksum, "{} is damaged: checksum {}, the manifest says {}", path.string(),
                        checksum, file.checksum);
}

Manifest read_manifest_together(Communicator& comm, const fs::path& path) {
  std::string text;
  const std::string file = (path / "manifest.json").string();
  run_together(comm, [&] {
    if (comm.rank() == 0) text = read_text_file(file);
  });
  text = broadcast_text(comm, text, 0);
  Manifest manifest;
  run_together(comm, [&] {
    manifest = parse_manifest(text, file);
    check_step(path, manifest);
  });
  return manifest;
}

Manifest verify_checkpoint(Communicator& comm, const fs::path& path, Glance glance) {
  Manifest manifest = read_manifest_together(comm, path);
  const auto for_my_files = [&](const auto& check) {
    const auto ranks = static_cast<std::size_t>(comm.size());
    for (auto i = static_cast<std::size_t>(comm.rank()); i < manifest.files.size(); i += ranks) {
      check(path, manifest.files[i]);
      report_progress(comm);
    }
  };
  // Sizes are cheap: a missing or short file is told before gigabytes are read.
  run_together(comm, [&] { for_my_files(check_file_size); });
  run_together(comm, [&] {
    for_my_files([&](const fs::path& checkpoint, const ManifestFile& file) {
      glance == Glance::Content ? check_file_content(checkpoint, file) : check_readable(checkpoint / file.name);
    });
  });
  return manifest;
}

std::optional<CheckpointInfo> find_latest(Communicator& comm, const fs::path& directory, Log* log, Glance glance) {
  std::string names;
  run_together(comm, [&] {
    if (comm.rank() != 0) return;
    try {
      for (const fs::path& path : list_checkpoints(directory)) names += path.string() + '\0';
    } catch (const fs::filesystem_error& e) {
      fail_to_read("look into", e.path1(), e.code().value());
    }
  });
  std::istringstream lines(broadcast_text(comm, names, 0));
  for (std::string path; std::getline(lines, path, '\0');) {
    try {
      return CheckpointInfo{path, verify_checkpoint(comm, path, glance)};
    } catch (const DamagedError& e) {
      if (log != nullptr && comm.rank() == 0) log->warn("skipping the checkpoint {}: {}", path, e.message());
    } catch (const UnreadableError& e) {
      fail<UnreadableError>("the checkpoint {} cannot be read: {}. {}", path, e.message(), kNotPassedOver);
    } catch (const OtherVersionError& e) {
      fail<OtherVersionError>("{}. {}", e.message(), kNotPassedOver);
    }
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
