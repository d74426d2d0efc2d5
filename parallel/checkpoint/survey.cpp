// All that is wrong with a checkpoint, not only the first: a part of verify.h.
#include <algorithm>
#include <chrono>
#include <exception>
#include <iterator>
#include <map>
#include <set>
#include <utility>

#include "parallel/checkpoint/hdf5_file.h"
#include "parallel/checkpoint/open_files.h"
#include "parallel/checkpoint/verify.h"
#include "parallel/comm/progress.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/files/file_error.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using Messages = std::map<std::size_t, std::string>;

/// Messages by number: what is damaged, and what this process was not let to read or has another version.
struct Findings {
  Messages damage, unknown;
  bool empty() const { return damage.empty() && unknown.empty(); }
};

/// Runs `work`; what it threw becomes the message with this number.
template <typename Work>
void noting(Findings& findings, std::size_t number, const Work& work) {
  try {
    work();
  } catch (const UnreadableError& e) {
    findings.unknown.emplace(number, e.message());
  } catch (const OtherVersionError& e) {
    findings.unknown.emplace(number, e.message());
  } catch (const Error& e) {
    findings.damage.emplace(number, e.message());
  } catch (const std::exception& e) {
    findings.unknown.emplace(number, e.what());
  }
}

/// What all ranks found, on all of them.
Findings join(Communicator& comm, const Findings& here) {
  return {join_messages(comm, here.damage), join_messages(comm, here.unknown)};
}

void append(CheckpointSurvey& survey, const Findings& findings) {
  for (const auto& [place, message] : findings.damage) survey.damage.push_back(message);
  for (const auto& [place, message] : findings.unknown) survey.unknown.push_back(message);
}

/// Empty if all ranks could read it.
Findings look_at_manifest(Communicator& comm, const fs::path& checkpoint, Manifest& manifest) {
  Findings here;
  noting(here, idx(comm.rank()), [&] {
    const IoPhase io(comm);
    manifest = read_manifest(checkpoint);
    check_step(checkpoint, manifest);
  });
  Findings all = join(comm, here);
  // The ranks say the same of one file.
  for (Messages* messages : {&all.damage, &all.unknown})
    if (!messages->empty()) messages->erase(std::next(messages->begin()), messages->end());
  return all;
}

/// Of datasets that are not what the manifest says, in files that are intact.
Findings check_datasets(Communicator& comm, const fs::path& checkpoint,
                        const std::vector<const ManifestTensor*>& datasets) {
  const auto [begin, end] = share_of_datasets(datasets, comm);
  Findings here;
  {
    const IoPhase io(comm);
    OpenFiles files(checkpoint);
    const Block block(kBlockBytes);
    for (std::size_t i = begin; i < end; ++i) {
      noting(here, i, [&] { files.read_whole(*datasets[i], block, [](const TensorView&) {}); });
      report_progress(comm);
    }
  }
  return join(comm, here);
}

/// Of the files by their places in the manifest. They are dealt round robin.
Findings check_files(Communicator& comm, const fs::path& checkpoint, const Manifest& manifest,
                     const std::set<std::string>& names) {
  Findings here;
  {
    const IoPhase io(comm);
    std::size_t turn = 0;
    for (std::size_t i = 0; i < manifest.files.size(); ++i) {
      const ManifestFile& file = manifest.files[i];
      if (!names.contains(file.name)) continue;
      if (turn++ % idx(comm.size()) != idx(comm.rank())) continue;
      noting(here, i, [&] { check_file(checkpoint, file); });
      report_progress(comm);
    }
  }
  return join(comm, here);
}

}  // namespace

void verify_files(Communicator& comm, const fs::path& checkpoint, const Manifest& manifest,
                  const std::vector<std::string>& names) {
  const Findings found = check_files(comm, checkpoint, manifest, {names.begin(), names.end()});
  if (!found.unknown.empty()) fail<UnreadableError>("{}", found.unknown.begin()->second);
  if (found.damage.empty()) return;
  const std::string& first = found.damage.begin()->second;
  if (found.damage.size() == 1) fail<DamagedError>("{}", first);
  fail<DamagedError>("{} ({} more of its files are damaged: emox checkpoint verify names them)", first,
                     found.damage.size() - 1);
}

CheckpointSurvey survey_checkpoint(Communicator& comm, const fs::path& checkpoint) {
  const auto start = std::chrono::steady_clock::now();
  CheckpointSurvey survey;
  survey.path = checkpoint;
  Manifest manifest;
  append(survey, look_at_manifest(comm, checkpoint, manifest));
  if (!survey.intact()) return survey;
  std::set<std::string> names, unusable;
  for (const ManifestFile& file : manifest.files) {
    names.insert(file.name);
    survey.bytes += file.bytes;
  }
  const Findings files = check_files(comm, checkpoint, manifest, names);
  append(survey, files);
  for (const Messages* messages : {&files.damage, &files.unknown})
    for (const auto& [place, message] : *messages) unusable.insert(manifest.files[place].name);
  std::vector<const ManifestTensor*> datasets;
  for (const ManifestTensor& t : manifest.tensors)
    if (!unusable.contains(t.file)) datasets.push_back(&t);
  append(survey, check_datasets(comm, checkpoint, by_file(std::move(datasets))));
  Findings here;
  if (survey.intact() && comm.rank() == 0)
    noting(here, 0, [&] {
      const IoPhase io(comm);
      check_index(checkpoint, manifest);
    });
  append(survey, join(comm, here));
  survey.files = static_cast<std::int64_t>(manifest.files.size());
  survey.datasets = static_cast<std::int64_t>(manifest.tensors.size());
  survey.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return survey;
}

}  // namespace emox
