// `emox bench checkpoint`: saving and loading a recipe's state against plain files on the same file system, in one run.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "launch/config/recipe.h"
#include "launch/run/session.h"

namespace emox {

struct CheckpointBenchOptions {
  std::filesystem::path directory;  ///< made, and removed afterwards; must not exist
  int repeats = 5;
};

/// Collective. Medians over the repeats; a repeat does everything once, so that a machine that changes its pace does it
/// to all of them. GB/s are 1e9 bytes a second of one writer, the slowest.
///   {save_gb_s (a whole save), write_gb_s (the shards alone, without checksums), raw_gb_s (a plain file of that size,
///   synced),
///    load_gb_s (verify and read, files dropped from the cache), raw_read_gb_s (likewise, a plain file),
///    stall_s (training stops for that long when saving in the background), copy_floor_s (one copy of as many bytes),
///    commit_s (index, manifest, renaming), load_extra_bytes (allocated while loading, beside the state itself),
///    bytes (of a writer), writers, arrays, ...}
nlohmann::ordered_json bench_checkpoint(Session& session, const Recipe& recipe, const CheckpointBenchOptions& options);

std::string checkpoint_table(const nlohmann::ordered_json& result);

}  // namespace emox
