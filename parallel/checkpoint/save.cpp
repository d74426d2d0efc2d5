// Saving: every rank writes its shard into a directory beside the final place; rank 0 adds the manifest and renames.
#include <algorithm>
#include <map>
#include <system_error>
#include <tuple>
#include <utility>

#include "parallel/checkpoint/agreement.h"
#include "parallel/checkpoint/checkpoint.h"
#include "parallel/checkpoint/checksum.h"
#include "parallel/checkpoint/coverage.h"
#include "parallel/checkpoint/durable_file.h"
#include "parallel/checkpoint/hdf5_file.h"
#include "parallel/checkpoint/layout.h"
#include "parallel/checkpoint/pieces.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::string text_of(std::int64_t step, const std::vector<Stretch>& stretches) {
  json tensors = json::array();
  for (const Stretch& s : stretches) tensors.push_back(to_json(s.entry));
  return json{{"step", step}, {"tensors", std::move(tensors)}}.dump();
}

/// What all ranks are going to write, one text a rank. Throws unless that makes a checkpoint: what nobody wrote could
/// not be loaded, and of what two wrote one would win.
std::vector<ManifestTensor> join(std::int64_t step, const std::vector<std::string>& texts) {
  std::vector<ManifestTensor> all;
  const int size = static_cast<int>(texts.size());
  std::map<std::string, int> rank_of_file;
  for (int r = 0; r < size; ++r) {
    const json part = json::parse(texts[static_cast<std::size_t>(r)]);
    require<IoError>(part.at("step") == step, "rank {} saves step {}, rank 0 step {}", r, part.at("step").dump(), step);
    for (const json& t : part.at("tensors")) all.push_back(tensor_from_json(t, fmt::format("a piece of rank {}", r)));
    rank_of_file[shard_file_name(r, size)] = r;
  }
  check_coverage(all, [&](const ManifestTensor& t) { return fmt::format("rank {}", rank_of_file.at(t.file)); });
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) {
    return std::tie(a.name, a.role, a.begin) < std::tie(b.name, b.role, b.begin);
  });
  return all;
}

/// Writes this rank's datasets and makes sure that they are on the disk.
ManifestFile write_file(const fs::path& path, const std::vector<Stretch>& stretches) {
  Hdf5File file = Hdf5File::create(path);
  for (const Stretch& s : stretches) file.write(s.entry, s.blocks);
  file.close();
  sync_to_disk(path);  // the library does not
  return {path.filename().string(), static_cast<std::int64_t>(fs::file_size(path)), checksum_of_file(path)};
}

std::string text_of(const ManifestFile& file) {
  return json{{"name", file.name}, {"bytes", file.bytes}, {"xxh3_128", file.checksum}}.dump();
}

ManifestFile file_of(const std::string& text) {
  const json file = json::parse(text);
  return {file.at("name"), file.at("bytes"), file.at("xxh3_128")};
}

void remove_quietly(const fs::path& path) {
  std::error_code ignored;  // a leftover is removed by the next save
  fs::remove_all(path, ignored);
}

}  // namespace

fs::path save_checkpoint(Communicator& comm, const fs::path& directory, std::int64_t step,
                         std::span<const CheckpointPiece> mine, const CheckpointMeta& meta) {
  const fs::path final_path = directory / step_directory_name(step);
  const fs::path temporary = final_path.string() + ".tmp";
  const std::string file_name = shard_file_name(comm.rank(), comm.size());
  const bool first = comm.rank() == 0;
  std::vector<Stretch> stretches;
  std::string text;
  run_together(comm, [&] {
    require<ShapeError>(step >= 0, "step {} cannot be saved", step);
    if (first) check_placement_and_mesh(meta.placement, meta.mesh);
    stretches = stretches_of(mine, file_name);
    text = text_of(step, stretches);
  });
  const std::vector<std::string> pieces = gather_texts(comm, text);
  Manifest manifest{.step = step,
                    .tokens = meta.tokens,
                    .seed = meta.seed,
                    .world_size = comm.size(),
                    .recipe = meta.recipe,
                    .extra = meta.extra,
                    .placement = meta.placement,
                    .mesh = meta.mesh,
                    .files = {},
                    .tensors = {}};
  try {
    run_together(comm, [&] {
      if (!first) return;
      manifest.tensors = join(step, pieces);
      fs::create_directories(directory);
      remove_unfinished_checkpoints(directory);
      fs::create_directory(temporary);
    });
    run_together(comm, [&] { text = text_of(write_file(temporary / file_name, stretches)); });
    const std::vector<std::string> files = gather_texts(comm, text);
    run_together(comm, [&] {
      if (!first) return;
      for (const std::string& f : files) manifest.files.push_back(file_of(f));
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
