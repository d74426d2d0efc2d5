// Whether a checkpoint is what its manifest says, told completely: all damage, not only the first.
#include <algorithm>
#include <chrono>
#include <exception>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "parallel/checkpoint/index_file.h"
#include "parallel/checkpoint/inspect.h"
#include "parallel/checkpoint/layout.h"
#include "parallel/checkpoint/open_files.h"
#include "parallel/checkpoint/verify.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using Messages = std::map<std::size_t, std::string>;

/// Runs `work`; what it threw becomes the message with this number.
template <typename Work>
void noting(Messages& messages, std::size_t number, const Work& work) {
  try {
    work();
  } catch (const Error& e) {
    messages.emplace(number, e.message());
  } catch (const std::exception& e) {
    messages.emplace(number, e.what());
  }
}

/// Nothing if all ranks could read it; otherwise what the first one that could not says, on all ranks.
std::optional<std::string> read_manifest_together(Communicator& comm, const fs::path& checkpoint, Manifest& manifest) {
  Messages mine;
  noting(mine, static_cast<std::size_t>(comm.rank()), [&] {
    manifest = read_manifest(checkpoint);
    const auto step = step_of_directory(checkpoint.filename().string());
    require<IoError>(!step || *step == manifest.step, "{} holds step {}", checkpoint.string(), manifest.step);
  });
  const Messages all = join_messages(comm, mine);
  if (all.empty()) return std::nullopt;
  return all.begin()->second;
}

/// The messages for datasets that are not what the manifest says, in files that are intact.
std::vector<std::string> damage_of_datasets(Communicator& comm, const fs::path& checkpoint,
                                            const std::vector<const ManifestTensor*>& datasets) {
  const auto [begin, end] = share_of_datasets(datasets, comm);
  OpenFiles files(checkpoint);
  const Block block(kBlockBytes);
  Messages mine;
  for (std::size_t i = begin; i < end; ++i)
    noting(mine, i, [&] { files.read_whole(*datasets[i], block, [](const TensorView&) {}); });
  std::vector<std::string> damage;
  for (const auto& [place, message] : join_messages(comm, mine)) damage.push_back(message);
  return damage;
}

/// The damaged files' messages by their places in the manifest. The files are dealt round robin.
Messages damaged_files(Communicator& comm, const fs::path& checkpoint, const Manifest& manifest,
                       const std::set<std::string>& names) {
  Messages mine;
  std::size_t turn = 0;
  for (std::size_t i = 0; i < manifest.files.size(); ++i) {
    const ManifestFile& file = manifest.files[i];
    if (!names.contains(file.name)) continue;
    if (turn++ % static_cast<std::size_t>(comm.size()) != static_cast<std::size_t>(comm.rank())) continue;
    noting(mine, i, [&] {
      check_file_size(checkpoint, file);
      check_file_content(checkpoint, file);
    });
  }
  return join_messages(comm, mine);
}

}  // namespace

void verify_files(Communicator& comm, const fs::path& checkpoint, const Manifest& manifest,
                  const std::vector<std::string>& names) {
  const Messages damage = damaged_files(comm, checkpoint, manifest, {names.begin(), names.end()});
  if (damage.empty()) return;
  const std::string& first = damage.begin()->second;
  if (damage.size() == 1) fail<IoError>("{}", first);
  fail<IoError>("{} ({} more of its files are damaged: emox checkpoint verify names them)", first, damage.size() - 1);
}

CheckpointSurvey survey_checkpoint(Communicator& comm, const fs::path& checkpoint) {
  const auto start = std::chrono::steady_clock::now();
  CheckpointSurvey survey;
  survey.path = checkpoint;
  Manifest manifest;
  if (const auto message = read_manifest_together(comm, checkpoint, manifest)) {
    survey.damage.push_back(*message);
    return survey;
  }
  std::set<std::string> names, damaged;
  for (const ManifestFile& file : manifest.files) {
    names.insert(file.name);
    survey.bytes += file.bytes;
  }
  for (const auto& [place, message] : damaged_files(comm, checkpoint, manifest, names)) {
    survey.damage.push_back(message);
    damaged.insert(manifest.files[place].name);
  }
  std::vector<const ManifestTensor*> datasets;
  for (const ManifestTensor& t : manifest.tensors)
    if (!damaged.contains(t.file)) datasets.push_back(&t);
  for (std::string& message : damage_of_datasets(comm, checkpoint, by_file(std::move(datasets))))
    survey.damage.push_back(std::move(message));
  Messages mine;
  if (survey.damage.empty() && comm.rank() == 0) noting(mine, 0, [&] { check_index(checkpoint, manifest); });
  for (const auto& [place, message] : join_messages(comm, mine)) survey.damage.push_back(message);
  survey.files = static_cast<std::int64_t>(manifest.files.size());
  survey.datasets = static_cast<std::int64_t>(manifest.tensors.size());
  survey.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return survey;
}

}  // namespace emox
