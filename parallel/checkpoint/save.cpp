// Saving: every rank writes its shard into a directory beside the final place; rank 0 adds the manifest and renames.
#include <algorithm>
#include <set>
#include <system_error>
#include <utility>

#include "parallel/checkpoint/agreement.h"
#include "parallel/checkpoint/checkpoint.h"
#include "parallel/checkpoint/checksum.h"
#include "parallel/checkpoint/durable_file.h"
#include "parallel/checkpoint/hdf5_file.h"
#include "parallel/checkpoint/layout.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

/// What a rank tells the others about its part: its file and the arrays in it.
struct Part {
  ManifestFile file;
  std::vector<ManifestTensor> tensors;
};

/// Everything that must be the same on all ranks for their parts to make one checkpoint.
std::string description_of(std::int64_t step, const std::vector<CheckpointArray>& arrays) {
  std::string text = fmt::format("step {}\n", step);
  for (const CheckpointArray& a : arrays)
    text += fmt::format("{} {} {} {}\n", a.name, a.role, name_of(a.view.dtype()), a.view.shape().str());
  return text;
}

/// Local checks, and that all ranks were given the same list.
std::vector<CheckpointArray> agree_on_arrays(Communicator& comm, std::int64_t step,
                                             std::span<const CheckpointTensor> tensors) {
  std::vector<CheckpointArray> arrays;
  run_together(comm, [&] {
    require<ShapeError>(step >= 0, "step {} cannot be saved", step);
    arrays = arrays_of(tensors);
    divide_among_ranks(arrays, comm.size());
  });
  const std::vector<std::string> sums = gather_texts(comm, checksum_of(description_of(step, arrays)));
  run_together(comm, [&] {
    require<ShapeError>(sums.front() == sums[static_cast<std::size_t>(comm.rank())],
                        "its list of tensors to save for step {} is not rank 0's", step);
  });
  return arrays;
}

/// Writes this rank's arrays and makes sure that they are on the disk.
Part write_part(const Communicator& comm, const fs::path& directory, const std::vector<CheckpointArray>& arrays) {
  Part part;
  part.file.name = shard_file_name(comm.rank(), comm.size());
  const fs::path path = directory / part.file.name;
  Hdf5File file = Hdf5File::create(path);
  for (const CheckpointArray& a : arrays) {
    if (a.writer != comm.rank()) continue;
    file.write(dataset_path(a.name, a.role), a.view);
    part.tensors.push_back(
        {a.name, a.role, a.view.dtype(), a.view.shape(), part.file.name, checksum_of(a.view.raw(), a.view.bytes())});
  }
  file.close();
  sync_to_disk(path);  // the library does not
  part.file.bytes = static_cast<std::int64_t>(fs::file_size(path));
  part.file.checksum = checksum_of_file(path);
  return part;
}

std::string text_of(const Part& part) {
  json tensors = json::array();
  for (const ManifestTensor& t : part.tensors) tensors.push_back(to_json(t));
  const json all = {
      {"name", part.file.name}, {"bytes", part.file.bytes}, {"xxh3_128", part.file.checksum}, {"tensors", tensors}};
  return all.dump();
}

void add_part(Manifest& manifest, const std::string& text) {
  const json all = json::parse(text);
  manifest.files.push_back({all.at("name"), all.at("bytes"), all.at("xxh3_128")});
  for (const json& t : all.at("tensors")) manifest.tensors.push_back(tensor_from_json(t));
}

/// The parts must hold every array exactly once: what nobody wrote could not be loaded, and of what two wrote one would
/// win.
void check_coverage(const Manifest& manifest, const std::vector<CheckpointArray>& arrays) {
  std::set<std::pair<std::string, std::string>> written;
  for (const ManifestTensor& t : manifest.tensors)
    require<IoError>(written.emplace(t.name, t.role).second, "{} ({}) was written by two ranks", t.name, t.role);
  for (const CheckpointArray& a : arrays)
    require<IoError>(written.count({a.name, a.role}) == 1, "{} ({}) was written by no rank", a.name, a.role);
  require<IoError>(written.size() == arrays.size(), "{} arrays were written, {} were to be saved", written.size(),
                   arrays.size());
}

void remove_quietly(const fs::path& path) {
  std::error_code ignored;  // a leftover is removed by the next save
  fs::remove_all(path, ignored);
}

}  // namespace

fs::path save_checkpoint(Communicator& comm, const fs::path& directory, std::int64_t step,
                         std::span<const CheckpointTensor> tensors, const CheckpointMeta& meta) {
  const std::vector<CheckpointArray> arrays = agree_on_arrays(comm, step, tensors);
  const fs::path final_path = directory / step_directory_name(step);
  const fs::path temporary = final_path.string() + ".tmp";
  const bool first = comm.rank() == 0;
  try {
    run_together(comm, [&] {
      if (!first) return;
      fs::create_directories(directory);
      remove_unfinished_checkpoints(directory);
      fs::create_directory(temporary);
    });
    Part part;
    run_together(comm, [&] { part = write_part(comm, temporary, arrays); });
    const std::vector<std::string> parts = gather_texts(comm, text_of(part));
    run_together(comm, [&] {
      if (!first) return;
      Manifest manifest{step, meta.tokens, meta.seed, comm.size(), meta.recipe, meta.extra, {}, {}};
      for (const std::string& text : parts) add_part(manifest, text);
      check_coverage(manifest, arrays);
      DurableFile file(temporary / "manifest.json");
      file.write(manifest_text(manifest));
      file.commit();
      replace_directory(temporary, final_path);
    });
  } catch (const Error&) {
    if (first) remove_quietly(temporary);
    throw;
  }
  return final_path;
}

}  // namespace emox
